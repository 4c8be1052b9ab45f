#include <pagedkv/cache.h>
