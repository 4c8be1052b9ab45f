#include "serve_api.h"

#include <jansson.h>
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { DEFAULT_NEW = 16, DEFAULT_CHAT_NEW = 256, MAX_MESSAGES = 1024 };

/* A member that is there and not null. */
static json_t *member(const json_t *root, const char *name)
{
    json_t *v = json_object_get(root, name);
    return json_is_null(v) ? NULL : v;
}

static int get_number(const json_t *root, const char *name, double min, double max, double *value,
                      tool_error *err)
{
    json_t *v = member(root, name);
    if (!v) return 0;
    double d = json_is_number(v) ? json_number_value(v) : NAN;
    if (!(d >= min && d <= max))
        return tool_fail(err, "'%s' must be a number from %g to %g", name, min, max);
    *value = d;
    return 0;
}

static int get_integer(const json_t *root, const char *name, json_int_t min, json_int_t max,
                       json_int_t *value, tool_error *err)
{
    json_t *v = member(root, name);
    if (!v) return 0;
    if (!json_is_integer(v) || json_integer_value(v) < min || json_integer_value(v) > max)
        return tool_fail(err, "'%s' must be a whole number from %lld to %lld", name, (long long)min,
                         (long long)max);
    *value = json_integer_value(v);
    return 0;
}

static int get_bool(const json_t *root, const char *name, bool *value, tool_error *err)
{
    json_t *v = member(root, name);
    if (!v) return 0;
    if (!json_is_boolean(v)) return tool_fail(err, "'%s' must be true or false", name);
    *value = json_is_true(v);
    return 0;
}

static int add_stop(text_stream *t, const json_t *v, tool_error *err)
{
    if (!json_is_string(v) || !json_string_length(v) ||
        strlen(json_string_value(v)) != json_string_length(v) || t->n_stops == TEXT_MAX_STOPS)
        return tool_fail(err, "'stop' must be one to %d texts", TEXT_MAX_STOPS);
    char *copy = strdup(json_string_value(v));
    if (!copy) return tool_fail(err, "not enough memory");
    t->stops[t->n_stops++] = copy;
    return 0;
}

static int get_stops(const json_t *root, text_stream *t, tool_error *err)
{
    json_t *v = member(root, "stop"), *item;
    size_t i;
    if (!v) return 0;
    if (!json_is_array(v)) return add_stop(t, v, err);
    json_array_foreach(v, i, item) if (add_stop(t, item, err)) return -1;
    return 0;
}

static int get_sampling(const json_t *root, job *j, tool_error *err)
{
    double temperature = 1, top_p = 1, min_p = 0, presence = 0, frequency = 0;
    json_int_t top_k = 0, seed = (json_int_t)(time(NULL) & 0x7fffffff), n = 1;
    if (get_number(root, "temperature", 0, 2, &temperature, err) ||
        get_number(root, "top_p", 0, 1, &top_p, err) ||
        get_number(root, "min_p", 0, 1, &min_p, err) ||
        get_number(root, "presence_penalty", -2, 2, &presence, err) ||
        get_number(root, "frequency_penalty", -2, 2, &frequency, err) ||
        get_integer(root, "top_k", 0, 1 << 20, &top_k, err) ||
        get_integer(root, "seed", INT64_MIN, INT64_MAX, &seed, err) ||
        get_integer(root, "n", 1, 1, &n, err) || get_integer(root, "best_of", 1, 1, &n, err) ||
        get_bool(root, "ignore_eos", &j->ignore_end, err))
        return -1;
    j->sampling = (sampler_options){.temperature = (float)temperature,
                                    .top_p = (float)top_p,
                                    .min_p = (float)min_p,
                                    .top_k = (int32_t)top_k,
                                    .presence_penalty = (float)presence,
                                    .frequency_penalty = (float)frequency,
                                    .seed = (uint32_t)(uint64_t)seed};
    bool off = false;
    json_t *logprobs = member(root, "logprobs");
    if ((logprobs && !json_is_false(logprobs)) || member(root, "tools") ||
        member(root, "logit_bias"))
        return tool_fail(err, "'logprobs', 'logit_bias' and 'tools' are not supported");
    return get_bool(root, "echo", &off, err) || off ? tool_fail(err, "'echo' is not supported") : 0;
}

static int take_ids(const json_t *list, job *j, const vocab *v, tool_error *err)
{
    size_t i, n = json_array_size(list);
    json_t *item;
    j->prompt = malloc((n ? n : 1) * sizeof *j->prompt);
    if (!j->prompt) return tool_fail(err, "not enough memory");
    json_array_foreach(list, i, item)
    {
        json_int_t id = json_is_integer(item) ? json_integer_value(item) : -1;
        if (id < 0 || id >= vocab_size(v))
            return tool_fail(err, "'prompt': entry %zu is no token of the vocabulary", i);
        j->prompt[i] = (int32_t)id;
    }
    j->n_prompt = (uint32_t)n;
    return 0;
}

static int take_text(const char *text, size_t size, bool special, job *j, const vocab *v,
                     tool_error *err)
{
    int64_t n = vocab_encode(v, text, size, special, &j->prompt, err);
    if (n < 0) return -1;
    j->n_prompt = (uint32_t)n;
    return 0;
}

static int get_prompt(const json_t *root, job *j, const vocab *v, tool_error *err)
{
    json_t *p = member(root, "prompt");
    if (json_is_array(p) && json_array_size(p) == 1 && !json_is_integer(json_array_get(p, 0)))
        p = json_array_get(p, 0);
    if (json_is_array(p)) return take_ids(p, j, v, err);
    if (!json_is_string(p))
        return tool_fail(err, "'prompt' must be a text or a list of token numbers");
    return take_text(json_string_value(p), json_string_length(p), true, j, v, err);
}

/* A message's text: a string, or a list of text parts of which the first counts. */
static const char *content_of(const json_t *message)
{
    json_t *c = member(message, "content");
    if (json_is_array(c) && json_array_size(c) == 1) c = member(json_array_get(c, 0), "text");
    return json_string_value(c);
}

static int get_messages(const json_t *root, job *j, const vocab *v, tool_error *err)
{
    const char *roles[MAX_MESSAGES], *contents[MAX_MESSAGES];
    json_t *list = member(root, "messages"), *m;
    size_t i, n = json_array_size(list);
    if (!n || n > MAX_MESSAGES)
        return tool_fail(err, "'messages' must be a list of 1 to %d messages", MAX_MESSAGES);
    json_array_foreach(list, i, m)
    {
        roles[i] = json_string_value(member(m, "role"));
        contents[i] = content_of(m);
        if (!roles[i] || !contents[i])
            return tool_fail(err, "'messages': entry %zu needs a 'role' and a text as 'content'",
                             i);
    }
    char *text = NULL;
    if (vocab_chat(v, roles, contents, n, &text, err)) return -1;
    int status = take_text(text, strlen(text), true, j, v, err);
    free(text);
    return status;
}

static int fill(const service *s, const json_t *root, api_request *r, tool_error *err)
{
    job *j = r->job;
    if (!json_is_object(root)) return tool_fail(err, "the body must be a JSON object");
    if ((r->chat ? get_messages : get_prompt)(root, j, service_vocab(s), err) ||
        get_sampling(root, j, err) || get_stops(root, &j->text, err) ||
        get_bool(root, "stream", &r->stream, err))
        return -1;
    json_t *options = member(root, "stream_options");
    if (options && get_bool(options, "include_usage", &r->usage, err)) return -1;
    uint32_t context = service_context(s);
    if (!j->n_prompt) return tool_fail(err, "the prompt is empty");
    if (j->n_prompt >= context)
        return tool_fail(err, "the prompt's %u tokens leave no room in a context of %u",
                         j->n_prompt, context);
    json_int_t most = (json_int_t)(context - j->n_prompt);
    json_int_t n_new = r->chat ? DEFAULT_CHAT_NEW : DEFAULT_NEW;
    if (n_new > most) n_new = most;
    if (get_integer(root, "max_tokens", 1, most, &n_new, err) ||
        get_integer(root, "max_completion_tokens", 1, most, &n_new, err))
        return -1;
    j->max_new = (uint32_t)n_new;
    return 0;
}

int api_parse(const service *s, bool chat, const char *body, size_t size, api_request *r,
              tool_error *err)
{
    static atomic_ulong number;
    json_error_t at;
    *r = (api_request){.chat = chat, .created = (long)time(NULL)};
    json_t *root = json_loadb(body, size, JSON_REJECT_DUPLICATES, &at);
    if (!root) {
        tool_fail(err, "the body is not JSON: %s (line %d, column %d)", at.text, at.line,
                  at.column);
        return 400;
    }
    r->job = job_new();
    int status = r->job ? 0 : 500;
    if (!r->job)
        tool_fail(err, "not enough memory");
    else if (fill(s, root, r, err))
        status = 400;
    json_decref(root);
    if (status) {
        job_drop(r->job);
        r->job = NULL;
    }
    snprintf(r->id, sizeof r->id, "%s-%08lx", chat ? "chatcmpl" : "cmpl",
             atomic_fetch_add(&number, 1));
    return status;
}

static json_t *reason_json(sched_reason reason)
{
    return reason == SCHED_RUNNING ? json_null()
                                   : json_string(reason == SCHED_STOP ? "stop" : "length");
}

static json_t *usage_json(const job *j)
{
    return json_pack("{s:i,s:i,s:i}", "prompt_tokens", (int)j->n_prompt, "completion_tokens",
                     (int)j->n_new, "total_tokens", (int)(j->n_prompt + j->n_new));
}

static json_t *envelope(const api_request *r, const char *name, const char *object, json_t *choices)
{
    return json_pack("{s:s,s:s,s:I,s:s,s:o}", "id", r->id, "object", object, "created",
                     (json_int_t)r->created, "model", name, "choices", choices);
}

static char *dump(json_t *j)
{
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;
    json_decref(j);
    return text;
}

char *api_answer(const api_request *r, const char *name)
{
    const job *j = r->job;
    const char *text = j->text.text ? j->text.text : "";
    json_t *choice =
        r->chat ? json_pack("{s:i,s:{s:s,s:s},s:o}", "index", 0, "message", "role", "assistant",
                            "content", text, "finish_reason", reason_json(j->reason))
                : json_pack("{s:i,s:s,s:n,s:o}", "index", 0, "text", text, "logprobs",
                            "finish_reason", reason_json(j->reason));
    json_t *body = envelope(r, name, r->chat ? "chat.completion" : "text_completion",
                            json_pack("[o]", choice));
    json_object_set_new(body, "usage", usage_json(j));
    return dump(body);
}

static json_t *delta(const char *text, size_t size, bool first)
{
    json_t *d = json_object();
    if (first) json_object_set_new(d, "role", json_string("assistant"));
    if (size || first) json_object_set_new(d, "content", json_stringn(text, size));
    return d;
}

char *api_event(const api_request *r, const char *name, const char *text, size_t size, bool first,
                sched_reason reason)
{
    const char *object = r->chat ? "chat.completion.chunk" : "text_completion";
    json_t *choice =
        r->chat ? json_pack("{s:i,s:o,s:o}", "index", 0, "delta", delta(text, size, first),
                            "finish_reason", reason_json(reason))
                : json_pack("{s:i,s:o,s:n,s:o}", "index", 0, "text", json_stringn(text, size),
                            "logprobs", "finish_reason", reason_json(reason));
    char *body = dump(envelope(r, name, object, json_pack("[o]", choice))), *usage = NULL;
    if (reason != SCHED_RUNNING && r->usage) {
        json_t *u = envelope(r, name, object, json_array());
        json_object_set_new(u, "usage", usage_json(r->job));
        usage = dump(u);
    }
    if (!body) return NULL;
    size_t room = strlen(body) + (usage ? strlen(usage) : 0) + 64;
    char *event = malloc(room);
    if (event) {
        int n = snprintf(event, room, "data: %s\n\n", body);
        if (usage) n += snprintf(event + n, room - (size_t)n, "data: %s\n\n", usage);
        if (reason != SCHED_RUNNING) snprintf(event + n, room - (size_t)n, "data: [DONE]\n\n");
    }
    free(body);
    free(usage);
    return event;
}

char *api_error(int status, const char *message)
{
    const char *type = status == 401   ? "authentication_error"
                       : status == 429 ? "rate_limit_error"
                       : status >= 500 ? "server_error"
                                       : "invalid_request_error";
    char clean[512];
    snprintf(clean, sizeof clean, "%s", message);
    for (char *c = clean; *c; c++) /* quotations of what was sent may not be UTF-8 */
        if ((unsigned char)*c >= 0x80 || (unsigned char)*c < 0x20) *c = '?';
    return dump(json_pack("{s:{s:s,s:s,s:n,s:n}}", "error", "message", clean, "type", type, "param",
                          "code"));
}

char *api_models(const char *name, long created)
{
    return dump(json_pack("{s:s,s:[{s:s,s:s,s:I,s:s}]}", "object", "list", "data", "id", name,
                          "object", "model", "created", (json_int_t)created, "owned_by",
                          "pkv-run"));
}
