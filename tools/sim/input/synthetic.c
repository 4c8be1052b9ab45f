#include "synthetic.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "parse.h"
#include "random.h"

typedef struct settings {
    bool chat;
    double requests, seed, rate, in, in_sigma, out, out_sigma, max_tokens;
    double turns, think, prompts, prompt_tokens, block;
} settings;

static const struct {
    const char *name;
    size_t offset;
    double min, max;
    bool chat_only;
} known[] = {
    {"requests", offsetof(settings, requests), 1, 1e7, false},
    {"seed", offsetof(settings, seed), 0, 0x1p53, false},
    {"rate", offsetof(settings, rate), 1e-6, 1e6, false},
    {"in", offsetof(settings, in), 1, 1e7, false},
    {"in_sigma", offsetof(settings, in_sigma), 0, 5, false},
    {"out", offsetof(settings, out), 1, 1e7, false},
    {"out_sigma", offsetof(settings, out_sigma), 0, 5, false},
    {"max_tokens", offsetof(settings, max_tokens), 2, 0x1p27, false},
    {"turns", offsetof(settings, turns), 1, 1000, true},
    {"think", offsetof(settings, think), 0, 1e6, true},
    {"prompts", offsetof(settings, prompts), 1, 10000, true},
    {"prompt_tokens", offsetof(settings, prompt_tokens), 0, 1e6, true},
    {"block", offsetof(settings, block), 1, 1e6, true},
};

static int set(settings *s, const char *item, tool_error *err)
{
    const char *equals = strchr(item, '=');
    if (equals == NULL) return tool_fail(err, "--synthetic: '%.60s' is not NAME=VALUE", item);
    size_t n = (size_t)(equals - item);
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strlen(known[i].name) != n || memcmp(known[i].name, item, n) != 0) continue;
        if (known[i].chat_only && !s->chat)
            return tool_fail(err, "--synthetic: '%s' belongs to chat only", known[i].name);
        double value;
        if (parse_double(equals + 1, known[i].name, known[i].min, known[i].max, &value, err) != 0)
            return tool_fail_in(err, "--synthetic");
        memcpy((char *)s + known[i].offset, &value, sizeof value);
        return 0;
    }
    return tool_fail(err, "--synthetic: unknown setting '%.*s'", n < 60 ? (int)n : 60, item);
}

static int parse_settings(const char *description, settings *s, tool_error *err)
{
    char item[96];
    const char *cursor = description;
    if (parse_list_next(&cursor, item, sizeof item, "--synthetic", err) != 1)
        return tool_fail(err, "--synthetic: a kind is missing (lengths or chat)");
    *s = (settings){.requests = 4000,
                    .seed = 1,
                    .rate = 4,
                    .in = 600,
                    .in_sigma = 1.1,
                    .out = 200,
                    .out_sigma = 0.9,
                    .max_tokens = 32768,
                    .turns = 5,
                    .think = 30,
                    .prompts = 8,
                    .prompt_tokens = 1200,
                    .block = TRACE_DEFAULT_BLOCK_TOKENS};
    if (strcmp(item, "chat") == 0) {
        s->chat = true;
        s->rate = 1;
        s->in = 120;
    } else if (strcmp(item, "lengths") != 0) {
        return tool_fail(err, "--synthetic: '%.60s' is not lengths or chat", item);
    }
    int got;
    while ((got = parse_list_next(&cursor, item, sizeof item, "--synthetic", err)) == 1)
        if (set(s, item, err) != 0) return -1;
    if (got < 0) return -1;
    if (s->chat && s->prompt_tokens + 2 > s->max_tokens)
        return tool_fail(err, "--synthetic: prompt_tokens leaves no room below max_tokens");
    return 0;
}

static uint32_t length(tool_random *r, double median, double sigma, double most)
{
    double v = floor(random_lognormal(r, median, sigma) + 0.5);
    if (v > most) v = most;
    return v < 1 ? 1 : (uint32_t)v;
}

static int make_lengths(const settings *s, tool_random *r, trace *out, tool_error *err)
{
    double now = 0;
    for (size_t i = 0; i < (size_t)s->requests; i++) {
        trace_request q = {.line = i + 1, .block_tokens = TRACE_DEFAULT_BLOCK_TOKENS};
        q.arrival = now;
        q.input = length(r, s->in, s->in_sigma, s->max_tokens - 1);
        q.output = length(r, s->out, s->out_sigma, s->max_tokens - q.input);
        if (trace_append(out, &q, NULL, 0, err) != 0) return -1;
        now += random_exponential(r, 1 / s->rate);
    }
    return 0;
}

/* A turn before sorting by time: its ids are in one array shared by all turns. */
typedef struct turn {
    trace_request request;
    size_t first;
    uint32_t n;
} turn;

typedef struct chat {
    const settings *s;
    tool_random *random;
    turn *turns;
    size_t n_turns;
    uint64_t *ids;
    size_t n_ids, capacity;
    uint64_t next_id;
    double *prompt_weights; /* cumulative */
} chat;

static uint64_t pick_prompt(chat *c)
{
    size_t n = (size_t)c->s->prompts, i = 0;
    double u = random_unit(c->random) * c->prompt_weights[n - 1];
    while (i + 1 < n && c->prompt_weights[i] <= u)
        i++;
    return i;
}

/* Appends one id to the shared array. */
static int add_id(chat *c, uint64_t id, tool_error *err)
{
    if (c->n_ids == c->capacity) {
        size_t capacity = c->capacity == 0 ? 4096 : 2 * c->capacity;
        uint64_t *grown = realloc(c->ids, capacity * sizeof *grown);
        if (grown == NULL) return tool_fail(err, "out of memory");
        c->ids = grown;
        c->capacity = capacity;
    }
    c->ids[c->n_ids++] = id;
    return 0;
}

/* Ids of a prompt of `input` tokens: blocks wholly inside the system prompt belong to it, the full
 * blocks of the turn before keep their ids, the rest is new. */
static int turn_ids(chat *c, turn *t, uint64_t prompt, const turn *before, tool_error *err)
{
    uint64_t block = (uint64_t)c->s->block, shared = (uint64_t)c->s->prompt_tokens / block;
    uint64_t n = (t->request.input + block - 1) / block;
    uint64_t kept = before == NULL ? 0 : before->request.input / block;
    t->first = c->n_ids;
    t->n = (uint32_t)n;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t id;
        if (i < shared)
            id = prompt * shared + i;
        else if (i < kept)
            id = c->ids[before->first + i];
        else
            id = c->next_id++;
        if (add_id(c, id, err) != 0) return -1;
    }
    return 0;
}

static int conversation(chat *c, double start, tool_error *err)
{
    const settings *s = c->s;
    uint64_t prompt = pick_prompt(c);
    double context = s->prompt_tokens, now = start;
    const turn *before = NULL;
    do {
        double room = s->max_tokens - context;
        if (room < 2) break;
        turn *t = &c->turns[c->n_turns];
        uint32_t message = length(c->random, s->in, s->in_sigma, room - 1);
        t->request =
            (trace_request){.arrival = now,
                            .block_tokens = (uint32_t)s->block,
                            .input = (uint32_t)context + message,
                            .output = length(c->random, s->out, s->out_sigma, room - message)};
        if (turn_ids(c, t, prompt, before, err) != 0) return -1;
        context = (double)t->request.input + t->request.output;
        now += random_exponential(c->random, s->think);
        before = t;
        c->n_turns++;
    } while (c->n_turns < (size_t)s->requests && random_unit(c->random) < 1 - 1 / s->turns);
    return 0;
}

static int by_arrival(const void *a, const void *b)
{
    const turn *x = a, *y = b;
    if (x->request.arrival != y->request.arrival)
        return x->request.arrival < y->request.arrival ? -1 : 1;
    return x->first < y->first ? -1 : x->first > y->first;
}

static int fill_chat(chat *c, trace *out, tool_error *err)
{
    const settings *s = c->s;
    double sum = 0, start = 0;
    for (size_t i = 0; i < (size_t)s->prompts; i++)
        c->prompt_weights[i] = sum += 1.0 / (double)(i + 1);
    c->next_id = (uint64_t)s->prompts * ((uint64_t)s->prompt_tokens / (uint64_t)s->block);
    while (c->n_turns < (size_t)s->requests) {
        if (conversation(c, start, err) != 0) return -1;
        start += random_exponential(c->random, 1 / s->rate);
    }
    qsort(c->turns, c->n_turns, sizeof *c->turns, by_arrival);
    for (size_t i = 0; i < c->n_turns; i++) {
        turn *t = &c->turns[i];
        t->request.line = i + 1;
        if (trace_append(out, &t->request, c->ids + t->first, t->n, err) != 0) return -1;
    }
    return 0;
}

static int make_chat(const settings *s, tool_random *r, trace *out, tool_error *err)
{
    chat c = {.s = s, .random = r};
    c.turns = calloc((size_t)s->requests, sizeof *c.turns);
    c.prompt_weights = calloc((size_t)s->prompts, sizeof *c.prompt_weights);
    int code = c.turns == NULL || c.prompt_weights == NULL ? tool_fail(err, "out of memory")
                                                           : fill_chat(&c, out, err);
    free(c.turns);
    free(c.prompt_weights);
    free(c.ids);
    return code;
}

int synthetic_trace(const char *description, trace *out, tool_error *err)
{
    settings s;
    memset(out, 0, sizeof *out);
    if (parse_settings(description, &s, err) != 0) return -1;
    tool_random r;
    random_seed(&r, (uint64_t)s.seed);
    out->name = strdup(s.chat ? "synthetic:chat" : "synthetic:lengths");
    out->format = TRACE_SYNTHETIC;
    out->has_arrivals = true;
    out->has_blocks = s.chat;
    int code = out->name == NULL ? tool_fail(err, "out of memory")
               : s.chat          ? make_chat(&s, &r, out, err)
                                 : make_lengths(&s, &r, out, err);
    if (code != 0) trace_free(out);
    return code;
}

int synthetic_check(const char *description, tool_error *err)
{
    settings s;
    return parse_settings(description, &s, err);
}
