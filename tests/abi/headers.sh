#!/bin/sh
# Every public header compiles alone, twice in a row, as C11 and as C++17, without a warning.
set -eu
cd "$(dirname "$0")/../.."
status=0
for header in include/pagedkv/*.h; do
    name=${header#include/}
    source=$(printf '#include <%s>\n#include <%s>\n' "$name" "$name")
    for tool in "cc -std=c11 -x c" "c++ -std=c++17 -x c++"; do
        # shellcheck disable=SC2086
        printf '%s\nint main(void) { return 0; }\n' "$source" |
            ${tool} -Iinclude -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fsyntax-only - || {
            echo "$name does not compile alone with: $tool"
            status=1
        }
    done
done
exit $status
