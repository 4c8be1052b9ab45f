/* pagedkv: prefix index. */
#ifndef PAGEDKV_PREFIX_H
#define PAGEDKV_PREFIX_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __cplusplus
}
#endif
#endif
