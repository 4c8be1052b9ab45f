#ifndef PAGEDKV_VERSION_H
#define PAGEDKV_VERSION_H
#include <stdint.h>
#define PKV_VERSION_MAJOR 0
#define PKV_VERSION_MINOR 2
#define PKV_VERSION_PATCH 0
#define PKV_VERSION_STRING "0.2.0"
#define PKV_VERSION (PKV_VERSION_MAJOR << 16 | PKV_VERSION_MINOR << 8 | PKV_VERSION_PATCH)
#if defined(__GNUC__)
#define PKV_API __attribute__((visibility("default")))
#else
#define PKV_API
#endif
#ifdef __cplusplus
extern "C" {
#endif
PKV_API uint32_t pkv_version(void);
PKV_API const char *pkv_version_string(void);
#ifdef __cplusplus
}
#endif
#endif
