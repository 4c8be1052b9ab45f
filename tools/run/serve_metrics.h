/* The service's state as Prometheus text and as JSON for the page. */
#ifndef TOOLS_RUN_SERVE_METRICS_H
#define TOOLS_RUN_SERVE_METRICS_H

#include "serve_job.h"

/* The caller frees; NULL if memory runs out. */
char *metrics_prometheus(const service_state *s);
char *metrics_json(const service_state *s, const char *name);

#endif
