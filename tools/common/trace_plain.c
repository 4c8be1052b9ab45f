/* Nearly all lines of nearly all traces are flat objects of whole numbers and the array of block
 * ids. Those are read here, in place; a general JSON reader would make an object of each number. */
#include <ctype.h>
#include <string.h>

#include "trace_format.h"

enum { TIMESTAMP, INPUT, OUTPUT, HASH_IDS, BLOCK_SIZE, OTHER, N_FIELDS };

static const char *skip_space(const char *at)
{
    while (*at == ' ' || *at == '\t')
        at++;
    return at;
}

/* A number of JSON without sign, fraction and exponent, of at most 18 digits. Returns its end, or
 * NULL; so do the others. */
static const char *read_number(const char *at, uint64_t *number)
{
    const char *begin = at;
    uint64_t value = 0;
    for (; isdigit((unsigned char)*at); at++)
        value = 10 * value + (uint64_t)(*at - '0');
    *number = value;
    bool fine = at > begin && at - begin <= 18 && (*begin != '0' || at - begin == 1);
    return fine ? at : NULL;
}

/* `at` is behind the array's start. */
static const char *read_ids(const char *at, uint64_t *ids, uint64_t *n)
{
    *n = 0;
    at = skip_space(at);
    if (*at == ']') return at + 1;
    while ((at = read_number(skip_space(at), &ids[*n])) != NULL) {
        ++*n;
        at = skip_space(at);
        if (*at == ']') return at + 1;
        if (*at++ != ',') return NULL;
    }
    return NULL;
}

/* A name of letters, digits and '_', and the colon. */
static const char *read_name(const char *at, int *field)
{
    static const char *const names[] = {"timestamp\"", "input_length\"", "output_length\"",
                                        "hash_ids\"", "block_size\""};
    if (*at++ != '"') return NULL;
    const char *end = at;
    while (isalnum((unsigned char)*end) || *end == '_')
        end++;
    if (*end++ != '"') return NULL;
    *field = 0;
    while (*field < OTHER && strncmp(at, names[*field], (size_t)(end - at)) != 0)
        ++*field;
    at = skip_space(end);
    return *at == ':' ? skip_space(at + 1) : NULL;
}

bool trace_read_plain(const char *text, trace_request *r, uint64_t *ids)
{
    uint64_t value[N_FIELDS] = {[BLOCK_SIZE] = TRACE_DEFAULT_BLOCK_TOKENS};
    unsigned seen = 0;
    const char *at = skip_space(text);
    if (*at != '{') return false;
    do {
        int field;
        at = read_name(skip_space(at + 1), &field);
        if (at == NULL || (*at == '[') != (field == HASH_IDS)) return false;
        at = field == HASH_IDS ? read_ids(at + 1, ids, &value[HASH_IDS])
                               : read_number(at, &value[field]);
        if (at == NULL) return false;
        seen |= 1u << field; /* of a name that occurs twice the last one counts */
        at = skip_space(at);
    } while (*at == ',');
    const unsigned needed = 1u << TIMESTAMP | 1u << INPUT | 1u << OUTPUT | 1u << HASH_IDS;
    if (*at != '}' || *skip_space(at + 1) != '\0' || (seen & needed) != needed) return false;
    if (value[TIMESTAMP] > TRACE_MAX_TIMESTAMP || value[INPUT] > TRACE_MAX_TOKENS ||
        value[OUTPUT] > TRACE_MAX_TOKENS || value[HASH_IDS] > TRACE_MAX_TOKENS ||
        value[BLOCK_SIZE] == 0 || value[BLOCK_SIZE] > TRACE_MAX_BLOCK_TOKENS)
        return false;
    r->arrival = (double)value[TIMESTAMP] / 1000;
    r->input = (uint32_t)value[INPUT];
    r->output = (uint32_t)value[OUTPUT];
    r->block_tokens = (uint32_t)value[BLOCK_SIZE];
    r->n_blocks = (uint32_t)value[HASH_IDS];
    return true;
}
