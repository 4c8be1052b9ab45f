#include <pagedkv/version.h>

uint32_t pkv_version(void)
{
    return PKV_VERSION_MAJOR << 16 | PKV_VERSION_MINOR << 8 | PKV_VERSION_PATCH;
}

const char *pkv_version_string(void) { return PKV_VERSION_STRING; }
