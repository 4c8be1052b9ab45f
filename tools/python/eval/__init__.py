"""What eviction does to quality, and how fast the runtime is, on real models."""

import pagedkv_runtime  # noqa: F401  before numpy: it sets how long the threads of products spin
