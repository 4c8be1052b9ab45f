/* pagedkv: paged KV-cache memory manager. Umbrella header. */
#ifndef PAGEDKV_PAGEDKV_H
#define PAGEDKV_PAGEDKV_H

#include "version.h"
#include "status.h"
#include "types.h"
#include "config.h"
#include "cache.h"
#include "page.h"
#include "sequence.h"
#include "batch.h"
#include "state.h"
#include "export.h"
#include "admission.h"
#include "attention.h"
#include "index.h"
#include "prefix.h"
#include "evict.h"
#include "stats.h"

#endif
