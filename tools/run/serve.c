/* pkv-run serve: an OpenAI-compatible server. Ends on SIGINT or SIGTERM; the exit status tells
 * whether the cache was whole and empty then. */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "options.h"
#include "run.h"
#include "serve_http.h"

typedef struct settings {
    run_options run;
    http_options http;
    uint32_t max_jobs;
    const char *key_file;
    api_key keys[SERVE_MAX_KEYS];
} settings;

/* Lines "KEY TENANT [SHARE [MAX]]"; '#' begins a comment. */
static int read_keys(settings *o, tool_error *err)
{
    char line[512];
    FILE *file = fopen(o->key_file, "r");
    if (!file) return tool_fail(err, "cannot open %s", o->key_file);
    int status = 0;
    for (uint32_t number = 1; !status && fgets(line, sizeof line, file); number++) {
        unsigned long long share = 0, max = 0;
        api_key *k = &o->keys[o->http.n_keys];
        line[strcspn(line, "#\n")] = '\0';
        if (line[strspn(line, " \t")] == '\0') continue;
        if (o->http.n_keys == SERVE_MAX_KEYS)
            status = tool_fail(err, "%s: more than %d keys", o->key_file, SERVE_MAX_KEYS);
        else if (sscanf(line, "%127s %63s %llu %llu", k->key, k->tenant, &share, &max) < 2)
            status =
                tool_fail(err, "%s, line %u: a key and a tenant are needed", o->key_file, number);
        else
            o->http.n_keys++;
        k->share = share;
        k->max = max;
    }
    fclose(file);
    return status;
}

static int set_quotas(const settings *o, service *s, tool_error *err)
{
    for (uint32_t i = 0; i < o->http.n_keys; i++) {
        const api_key *k = &o->keys[i];
        pkv_namespace space = {k->tenant, strlen(k->tenant)};
        if ((k->share || k->max) && service_set_quota(s, &space, k->share, k->max, err)) return -1;
    }
    return 0;
}

static int wait_for_signal(const sigset_t *set)
{
    int number = 0;
    return sigwait(set, &number) ? -1 : number;
}

static int run(void *command, tool_error *err)
{
    settings *o = command;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before there are threads: sigwait takes them */
    signal(SIGPIPE, SIG_IGN);
    service *s = service_start(&o->run, o->max_jobs, err);
    if (!s) return -1;
    http *h = set_quotas(o, s, err) ? NULL : http_start(s, &o->http, err);
    int status = h ? 0 : -1;
    if (h) {
        printf("listening on http://%s:%u\n", o->http.host, http_port(h));
        fflush(stdout);
        wait_for_signal(&set);
        service_cancel_all(s);
        http_stop(h);
    }
    tool_error stopping;
    if (service_stop(s, &stopping) && !status) status = tool_fail(err, "%s", stopping.text);
    if (!status) puts("stopped: the cache is whole and empty");
    return status;
}

static void defaults(void *command)
{
    settings *o = command;
    run_options_defaults(&o->run);
    o->http.host = "127.0.0.1";
    o->http.port = 8080;
    o->http.max_body = 1 << 20;
    o->http.max_connections = 512;
    o->max_jobs = 256;
}

static int prepare(void *command, tool_error *err)
{
    settings *o = command;
    o->http.keys = o->keys;
    if (o->key_file && read_keys(o, err)) return -1;
    return run_options_check(&o->run, err);
}

#define AT(field) offsetof(settings, field)

static const cli_option options[] = {
    {"host", "ADDRESS", CLI_TEXT, AT(http.host), .help = "IPv4 address (default 127.0.0.1)"},
    {"port", "N", CLI_U32, AT(http.port), 0, 65535, .help = "0 = any (default 8080)"},
    {"max-jobs", "N", CLI_U32, AT(max_jobs), 1, 65536,
     .help = "requests that run or wait; more get 429 (default 256)"},
    {"max-connections", "N", CLI_U32, AT(http.max_connections), 1, 16384, .help = "(default 512)"},
    {"max-body", "BYTES", CLI_SIZE, AT(http.max_body), .help = "(default 1MiB)"},
    {"api-keys", "FILE", CLI_TEXT, AT(key_file),
     .help = "lines KEY TENANT [SHARE [MAX]]: each tenant has prefixes of its own, and a quota of "
             "published pages per layer group"},
    {"admin-key", "KEY", CLI_TEXT, AT(http.admin_key),
     .help = "allows POST /admin/memory {\"bytes\": N} and POST /admin/verify"},
    {.kind = CLI_GROUP, .at = AT(run), .group = run_common_options},
    {0},
};

int run_serve(int argc, char **argv)
{
    static const cli_command command = {
        .name = "pkv-run serve",
        .summary = "Serves /v1/completions, /v1/chat/completions (streams, too), /v1/models, "
                   "/health, /metrics, and a page with live figures at /.",
        .options = options,
        .size = sizeof(settings),
        .defaults = defaults,
        .prepare = prepare,
        .run = run};
    return cli_run(&command, argc, argv);
}
