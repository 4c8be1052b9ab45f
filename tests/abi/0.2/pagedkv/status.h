#ifndef PAGEDKV_STATUS_H
#define PAGEDKV_STATUS_H
#include "version.h"
#ifdef __cplusplus
extern "C" {
#endif
typedef int32_t pkv_status;
enum {
    PKV_OK = 0,
    PKV_EINVAL = -1,
    PKV_ENOMEM = -2,
    PKV_ENOPAGES = -3,
    PKV_ESTALE = -4,
    PKV_EFOREIGN = -5,
    PKV_EBUSY = -6,
    PKV_ESTATE = -7,
    PKV_ERANGE = -8,
    PKV_ENOTSUP = -9,
    PKV_EDROPPED = -10,
    PKV_ECORRUPT = -11,
    PKV_EVERSION = -12,
    PKV_EUNSAFE = -13,
    PKV_EIO = -14
};
PKV_API const char *pkv_status_text(pkv_status status);
PKV_API const char *pkv_status_name(pkv_status status);
#ifdef __cplusplus
}
#endif
#endif
