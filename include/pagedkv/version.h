/* pagedkv: version numbers and the export attribute. */
#ifndef PAGEDKV_VERSION_H
#define PAGEDKV_VERSION_H

#include <stdint.h>

#define PKV_VERSION_MAJOR 0
#define PKV_VERSION_MINOR 2
#define PKV_VERSION_PATCH 0
#define PKV_VERSION_STRING "0.2.0"
/* The three numbers in one, as pkv_version() packs them: for #if, and for comparisons. */
#define PKV_VERSION (PKV_VERSION_MAJOR << 16 | PKV_VERSION_MINOR << 8 | PKV_VERSION_PATCH)

#if defined(__GNUC__)
#define PKV_API __attribute__((visibility("default")))
#else
#define PKV_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the library that is loaded: major << 16 | minor << 8 | patch. A program compiled
 * against the headers of PKV_VERSION runs with every library of the same soname where
 * pkv_version() >= PKV_VERSION (docs/abi.md). MT-safe, O(1). */
PKV_API uint32_t pkv_version(void);

/* The same as text, static storage, never NULL. MT-safe, O(1). */
PKV_API const char *pkv_version_string(void);

#ifdef __cplusplus
}
#endif
#endif
