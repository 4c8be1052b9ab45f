/* HTTP: routes, bodies, streams and clients that leave, on libmicrohttpd with a thread for each
 * connection. */
#ifndef TOOLS_RUN_SERVE_HTTP_H
#define TOOLS_RUN_SERVE_HTTP_H

#include "serve_job.h"

enum { SERVE_MAX_KEYS = 256 };

/* A client's key: requests with it live in a namespace of their own. */
typedef struct api_key {
    char key[128], tenant[64];
    uint64_t share, max; /* quota in pages of each layer group; 0 = none */
} api_key;

typedef struct http_options {
    const char *host;
    uint32_t port;
    uint64_t max_body;
    uint32_t max_connections;
    const char *admin_key; /* NULL = no /admin */
    const api_key *keys;
    uint32_t n_keys; /* 0 = everybody, in the default namespace */
} http_options;

typedef struct http http;

/* NULL with a text. */
http *http_start(service *s, const http_options *o, tool_error *err);
/* Answers no more; waits for the connections' threads. */
void http_stop(http *h);
/* The port in use (for port 0). */
uint32_t http_port(const http *h);

#endif
