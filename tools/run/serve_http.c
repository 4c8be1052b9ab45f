#include "serve_http.h"

#include <arpa/inet.h>
#include <errno.h>
#include <jansson.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "serve_api.h"
#include "serve_metrics.h"
#include "serve_page.h"

/* A body up to DRAINED times too large is read and dropped, so that its client sees the answer. */
enum { WAIT_MS = 200, IDLE_SECONDS = 30, BODY_SECONDS = 60, DRAINED = 64 };

struct http {
    service *s;
    http_options o;
    struct MHD_Daemon *daemon;
    long created;
};

/* One request on a connection. */
typedef struct exchange {
    http *h;
    struct MHD_Connection *connection;
    char *body;
    size_t size;
    double started;
    int refused; /* status to answer with once the body is over; 0 = none */
    api_request api;
    size_t sent; /* of the job's text */
    bool first, ended;
    char *event; /* being written */
    size_t event_size, event_sent;
} exchange;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- answers -------------------------------------------------------------------------------- */

/* Queues a body, which it frees; a NULL body is a 500. */
static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
                              char *body)
{
    bool ok = body != NULL;
    struct MHD_Response *r =
        ok ? MHD_create_response_from_buffer(strlen(body), body, MHD_RESPMEM_MUST_FREE)
           : MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
    if (!r) {
        free(body);
        return MHD_NO;
    }
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    if (status == MHD_HTTP_TOO_MANY_REQUESTS)
        MHD_add_response_header(r, MHD_HTTP_HEADER_RETRY_AFTER, "2");
    if (status == MHD_HTTP_UNAUTHORIZED)
        MHD_add_response_header(r, MHD_HTTP_HEADER_WWW_AUTHENTICATE, "Bearer");
    if (status == MHD_HTTP_CONTENT_TOO_LARGE || status == MHD_HTTP_REQUEST_TIMEOUT)
        MHD_add_response_header(r, MHD_HTTP_HEADER_CONNECTION, "close");
    enum MHD_Result result = MHD_queue_response(c, ok ? status : 500, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result refuse(struct MHD_Connection *c, int status, const char *why)
{
    return answer(c, (unsigned)status, "application/json", api_error(status, why));
}

/* Has the client closed its end? A byte that waits is a pipelined request. */
static bool client_left(struct MHD_Connection *c)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD);
    char byte;
    if (!info) return true;
    ssize_t n = recv(info->connect_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

/* Waits for text beyond `sent` or the end; false if the client left, whose job is cancelled then.
 */
static bool wait_for_text(exchange *x, size_t sent)
{
    job *j = x->api.job;
    for (;;) {
        pthread_mutex_lock(&j->lock);
        job_wait(j, sent, WAIT_MS);
        bool more = j->reason != SCHED_RUNNING || j->text.ready > sent;
        pthread_mutex_unlock(&j->lock);
        if (more) return true;
        if (client_left(x->connection)) {
            service_cancel(x->h->s, j);
            return false;
        }
    }
}

static enum MHD_Result refuse_ended(exchange *x, sched_reason reason)
{
    if (reason == SCHED_TOO_LARGE)
        return refuse(x->connection, 400, "the request does not fit the server's memory limit");
    if (reason == SCHED_CANCELLED) return refuse(x->connection, 503, "the server is stopping");
    return refuse(x->connection, 500, "the request failed");
}

/* ---- streams -------------------------------------------------------------------------------- */

/* Takes what the job has beyond what was sent as the next event; false at the end of the stream. */
static bool next_event(exchange *x)
{
    job *j = x->api.job;
    free(x->event);
    x->event = NULL;
    x->event_sent = x->event_size = 0;
    if (x->ended || !wait_for_text(x, x->sent)) return false;
    pthread_mutex_lock(&j->lock);
    sched_reason reason = j->reason;
    size_t size = j->text.ready - x->sent;
    const char *text = size ? j->text.text + x->sent : "";
    bool fine = reason == SCHED_RUNNING || reason == SCHED_STOP || reason == SCHED_LENGTH;
    const char *name = service_model(x->h->s);
    if (size || fine) {
        x->event = api_event(&x->api, name, text, size, x->first, size ? SCHED_RUNNING : reason);
        x->ended = !size && reason != SCHED_RUNNING;
    } else {
        char *error = api_error(500, "the request was cut off");
        x->event = error ? malloc(strlen(error) + 16) : NULL;
        if (x->event) sprintf(x->event, "data: %s\n\n", error);
        free(error);
        x->ended = true;
    }
    x->sent += size;
    x->first = false;
    pthread_mutex_unlock(&j->lock);
    if (x->event) x->event_size = strlen(x->event);
    return x->event != NULL;
}

static ssize_t read_stream(void *context, uint64_t position, char *buffer, size_t room)
{
    exchange *x = context;
    (void)position;
    if (x->event_sent == x->event_size && !next_event(x))
        return x->ended ? MHD_CONTENT_READER_END_OF_STREAM : MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = x->event_size - x->event_sent;
    if (n > room) n = room;
    memcpy(buffer, x->event + x->event_sent, n);
    x->event_sent += n;
    return (ssize_t)n;
}

static enum MHD_Result answer_stream(exchange *x)
{
    struct MHD_Response *r =
        MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 4096, read_stream, x, NULL);
    if (!r) return MHD_NO;
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, "text/event-stream");
    MHD_add_response_header(r, MHD_HTTP_HEADER_CACHE_CONTROL, "no-cache");
    x->first = true;
    enum MHD_Result result = MHD_queue_response(x->connection, MHD_HTTP_OK, r);
    MHD_destroy_response(r);
    return result;
}

/* ---- requests ------------------------------------------------------------------------------- */

static const char *bearer(struct MHD_Connection *c)
{
    const char *value =
        MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_AUTHORIZATION);
    return value && strncmp(value, "Bearer ", 7) == 0 ? value + 7 : "";
}

/* In a time that does not tell how much of it was right. */
static bool same_key(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    unsigned differ = n != m;
    for (size_t i = 0; i < n; i++)
        differ |= (unsigned)(unsigned char)a[i] ^ (unsigned)(unsigned char)b[m ? i % m : 0];
    return !differ;
}

/* The client's tenant; false if keys are needed and this is none. */
static bool find_tenant(const http *h, struct MHD_Connection *c, const api_key **tenant)
{
    const char *key = bearer(c);
    *tenant = NULL;
    for (uint32_t i = 0; i < h->o.n_keys; i++)
        if (same_key(key, h->o.keys[i].key)) *tenant = &h->o.keys[i];
    return !h->o.n_keys || *tenant;
}

static enum MHD_Result complete(exchange *x, bool chat)
{
    http *h = x->h;
    tool_error err;
    const api_key *tenant;
    if (!find_tenant(h, x->connection, &tenant))
        return refuse(x->connection, 401, "a valid API key is needed");
    int status = api_parse(h->s, chat, x->body ? x->body : "", x->size, &x->api, &err);
    if (status) return refuse(x->connection, status, err.text);
    job *j = x->api.job;
    if (tenant) j->space = (pkv_namespace){tenant->tenant, strlen(tenant->tenant)};
    if (service_submit(h->s, j)) {
        job_drop(j);
        x->api.job = NULL;
        return refuse(x->connection, 429, "too many requests are waiting");
    }
    /* a stream's status is decided by its first token, any other answer's by its last */
    size_t until = x->api.stream ? 0 : SIZE_MAX;
    if (!wait_for_text(x, until)) return MHD_NO;
    pthread_mutex_lock(&j->lock);
    sched_reason reason = j->reason;
    bool none = j->text.ready == 0;
    pthread_mutex_unlock(&j->lock);
    bool failed = reason >= SCHED_CANCELLED;
    if (failed && (none || !x->api.stream)) return refuse_ended(x, reason);
    if (x->api.stream) return answer_stream(x);
    return answer(x->connection, 200, "application/json", api_answer(&x->api, service_model(h->s)));
}

static enum MHD_Result administer(exchange *x, const char *url)
{
    http *h = x->h;
    tool_error err = {""};
    if (!h->o.admin_key || !same_key(bearer(x->connection), h->o.admin_key))
        return refuse(x->connection, 401, "the admin key is needed");
    int status = 0;
    if (strcmp(url, "/admin/memory") == 0) {
        json_t *root = json_loadb(x->body ? x->body : "", x->size, 0, NULL);
        json_int_t bytes = json_integer_value(json_object_get(root, "bytes"));
        json_decref(root);
        if (bytes <= 0) return refuse(x->connection, 400, "'bytes' must be a whole number above 0");
        status = service_set_memory(h->s, (uint64_t)bytes, &err);
    } else {
        status = service_verify(h->s, &err);
    }
    if (status) return refuse(x->connection, 409, err.text);
    return answer(x->connection, 200, "application/json", strdup("{\"ok\":true}"));
}

static enum MHD_Result get(exchange *x, const char *url)
{
    http *h = x->h;
    service_state state;
    if (strcmp(url, "/") == 0)
        return answer(x->connection, 200, "text/html; charset=utf-8",
                      strdup((const char *)serve_page));
    if (strcmp(url, "/health") == 0)
        return answer(x->connection, 200, "application/json", strdup("{\"status\":\"ok\"}"));
    if (strcmp(url, "/v1/models") == 0)
        return answer(x->connection, 200, "application/json",
                      api_models(service_model(h->s), h->created));
    service_get_state(h->s, &state);
    if (strcmp(url, "/metrics") == 0)
        return answer(x->connection, 200, "text/plain; version=0.0.4", metrics_prometheus(&state));
    if (strcmp(url, "/stats") == 0)
        return answer(x->connection, 200, "application/json",
                      metrics_json(&state, service_model(h->s)));
    return refuse(x->connection, 404, "no such page");
}

static enum MHD_Result dispatch(exchange *x, const char *url, const char *method)
{
    bool is_get = strcmp(method, "GET") == 0, is_post = strcmp(method, "POST") == 0;
    bool chat = strcmp(url, "/v1/chat/completions") == 0;
    bool post_url = chat || strcmp(url, "/v1/completions") == 0 ||
                    strcmp(url, "/admin/memory") == 0 || strcmp(url, "/admin/verify") == 0;
    if (x->refused == 413) return refuse(x->connection, 413, "the body is too large");
    if (x->refused) return refuse(x->connection, x->refused, "the body took too long");
    if (post_url && !is_post) return refuse(x->connection, 405, "this address wants POST");
    if (!post_url && !is_get) return refuse(x->connection, 405, "this address wants GET");
    if (!post_url) return get(x, url);
    if (strncmp(url, "/admin/", 7) == 0) return administer(x, url);
    return complete(x, chat);
}

/* Keeps a part of the body; what is too much is read and dropped, so that the answer arrives. */
static void take_body(exchange *x, const char *data, size_t size)
{
    if (now() - x->started > BODY_SECONDS) x->refused = MHD_HTTP_REQUEST_TIMEOUT;
    if (!x->refused && size > x->h->o.max_body - x->size) x->refused = MHD_HTTP_CONTENT_TOO_LARGE;
    char *more = x->refused ? NULL : realloc(x->body, x->size + size);
    if (!more) {
        if (!x->refused) x->refused = MHD_HTTP_CONTENT_TOO_LARGE;
        return;
    }
    memcpy(more + x->size, data, size);
    x->body = more;
    x->size += size;
}

static enum MHD_Result on_request(void *context, struct MHD_Connection *c, const char *url,
                                  const char *method, const char *version, const char *data,
                                  size_t *size, void **own)
{
    (void)version;
    exchange *x = *own;
    if (!x) {
        x = *own = calloc(1, sizeof *x);
        if (!x) return MHD_NO;
        x->h = context;
        x->connection = c;
        x->started = now();
        const char *length =
            MHD_lookup_connection_value(c, MHD_HEADER_KIND, MHD_HTTP_HEADER_CONTENT_LENGTH);
        unsigned long long bytes = length ? strtoull(length, NULL, 10) : 0;
        if (bytes > x->h->o.max_body) x->refused = MHD_HTTP_CONTENT_TOO_LARGE;
        if (bytes / DRAINED > x->h->o.max_body) return refuse(c, 413, "the body is too large");
        return MHD_YES;
    }
    if (*size) {
        take_body(x, data, *size);
        *size = 0;
        return x->refused == MHD_HTTP_REQUEST_TIMEOUT ? MHD_NO : MHD_YES;
    }
    return dispatch(x, url, method);
}

static void on_completed(void *context, struct MHD_Connection *c, void **own,
                         enum MHD_RequestTerminationCode code)
{
    exchange *x = *own;
    (void)context;
    (void)c;
    (void)code;
    if (!x) return;
    if (x->api.job) {
        service_cancel(x->h->s, x->api.job); /* nothing happens to one that ended */
        job_drop(x->api.job);
    }
    free(x->event);
    free(x->body);
    free(x);
    *own = NULL;
}

http *http_start(service *s, const http_options *o, tool_error *err)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)o->port)};
    if (inet_pton(AF_INET, o->host, &at.sin_addr) != 1) {
        tool_fail(err, "--host: '%.60s' is no IPv4 address", o->host);
        return NULL;
    }
    http *h = calloc(1, sizeof *h);
    if (!h) {
        tool_fail(err, "not enough memory");
        return NULL;
    }
    h->s = s;
    h->o = *o;
    h->created = (long)time(NULL);
    h->daemon = MHD_start_daemon(
        MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_THREAD_PER_CONNECTION | MHD_USE_POLL,
        (uint16_t)o->port, NULL, NULL, on_request, h, MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&at,
        MHD_OPTION_NOTIFY_COMPLETED, on_completed, NULL, MHD_OPTION_CONNECTION_TIMEOUT,
        (unsigned)IDLE_SECONDS, MHD_OPTION_CONNECTION_LIMIT, (unsigned)o->max_connections,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)65536, MHD_OPTION_THREAD_STACK_SIZE,
        (size_t)262144, MHD_OPTION_LISTENING_ADDRESS_REUSE, 1u, MHD_OPTION_END);
    if (h->daemon) return h;
    tool_fail(err, "cannot listen on %s:%u", o->host, o->port);
    free(h);
    return NULL;
}

void http_stop(http *h)
{
    MHD_stop_daemon(h->daemon);
    free(h);
}

uint32_t http_port(const http *h)
{
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_BIND_PORT);
    return info ? info->port : h->o.port;
}
