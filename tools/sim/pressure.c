#include "pressure.h"

#include <stdint.h>
#include <string.h>

#include "parse.h"

static int parse_item(char *item, pressure *change, tool_error *err)
{
    char *colon = strchr(item, ':');
    if (colon == NULL)
        return tool_fail(err, "--pressure: '%.60s' is not TIME:CHANGE (as in 60s:-50%%)", item);
    *colon = '\0';
    if (parse_duration(item, "--pressure", &change->at, err) != 0) return -1;
    char *amount = colon + 1;
    size_t n = strlen(amount);
    if (n > 0 && amount[n - 1] == '%') {
        amount[n - 1] = '\0';
        if (*amount != '-' && *amount != '+')
            return tool_fail(err, "--pressure: '%.60s%%' needs a sign (+ or -)", amount);
        double percent;
        if (parse_double(amount, "--pressure", -99.999, 10000, &percent, err) != 0) return -1;
        change->relative = 1;
        change->amount = percent / 100;
        return 0;
    }
    uint64_t bytes;
    if (parse_size(amount, "--pressure", &bytes, err) != 0) return -1;
    change->relative = 0;
    change->amount = (double)bytes;
    return 0;
}

int pressure_parse(const char *text, pressure *changes, size_t capacity, size_t *n, tool_error *err)
{
    size_t count = 0;
    char item[64];
    int got;
    while ((got = parse_list_next(&text, item, sizeof item, "--pressure", err)) == 1) {
        if (count == capacity) return tool_fail(err, "--pressure: more than %zu changes", capacity);
        if (parse_item(item, &changes[count], err) != 0) return -1;
        if (count > 0 && changes[count].at < changes[count - 1].at)
            return tool_fail(err, "--pressure: times must not decrease (%gs after %gs)",
                             changes[count].at, changes[count - 1].at);
        count++;
    }
    if (got < 0) return -1;
    *n = count;
    return 0;
}
