/* pagedkv: status codes. Every function that can fail returns one of these; 0 is success and every
 * failure is negative. A call that fails leaves everything as it was and writes no output. */
#ifndef PAGEDKV_STATUS_H
#define PAGEDKV_STATUS_H

#include "version.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t pkv_status;

enum {
    PKV_OK = 0,
    PKV_EINVAL = -1,    /* an argument is NULL, out of bounds or contradicts another */
    PKV_ENOMEM = -2,    /* the allocator or the OS refused memory for metadata or a region */
    PKV_ENOPAGES = -3,  /* not enough pages under the memory limit; the shortfall says how many */
    PKV_ESTALE = -4,    /* the handle's object was destroyed, committed, aborted or reused */
    PKV_EFOREIGN = -5,  /* the handle belongs to another cache */
    PKV_EBUSY = -6,     /* the object is in a reserved batch, pinned or still referenced */
    PKV_ESTATE = -7,    /* called out of order (commit without reserve, attend without plan) */
    PKV_ERANGE = -8,    /* a size overflows or exceeds a documented limit */
    PKV_ENOTSUP = -9,   /* not supported by this storage mode, format or build */
    PKV_EDROPPED = -10, /* the tokens concerned were evicted or left the window */
    PKV_ECORRUPT = -11, /* verify found a broken invariant, or a page checksum does not match */
    PKV_EVERSION = -12, /* a struct_size or version this library does not know */
    PKV_EUNSAFE = -13,  /* admission refused: the state would no longer be safe */
    PKV_EIO = -14       /* an OS call failed */
};

/* Fixed English text of a code ("not enough pages"), static storage, never NULL, also for unknown
 * codes. MT-safe, O(1). */
PKV_API const char *pkv_status_text(pkv_status status);

/* Symbolic name of a code ("PKV_ENOPAGES"), static storage, never NULL. MT-safe, O(1). */
PKV_API const char *pkv_status_name(pkv_status status);

#ifdef __cplusplus
}
#endif
#endif
