#include <pagedkv/config.h>
