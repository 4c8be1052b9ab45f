/* index: what is known about finished pages, without the pages: a tree of nodes found by hash and
 * compared by content (nodes.h), and the replacement policies that order them (policy.h). It knows
 * no pool, no table, no sequence and takes no lock; lib/prefix binds it to those of a cache, api.c
 * gives it to the public as it is (pagedkv/index.h). */
#ifndef PKVI_INDEX_INDEX_H
#define PKVI_INDEX_INDEX_H

#include "nodes.h"
#include "policy.h"

#endif
