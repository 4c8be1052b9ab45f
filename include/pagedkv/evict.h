/* pagedkv: eviction policies. */
#ifndef PAGEDKV_EVICT_H
#define PAGEDKV_EVICT_H

#include "types.h"

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __cplusplus
}
#endif
#endif
