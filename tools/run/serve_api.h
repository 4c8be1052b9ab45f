/* The OpenAI-compatible bodies: requests into jobs, jobs into answers. No sockets here. */
#ifndef TOOLS_RUN_SERVE_API_H
#define TOOLS_RUN_SERVE_API_H

#include "serve_job.h"

typedef struct api_request {
    bool chat, stream, usage;
    char id[40];
    long created;
    job *job;
} api_request;

/* Parses a body of /v1/completions or (chat) /v1/chat/completions and makes the job. 0; else an
 * HTTP status (400, 413, 500) with a text. Nothing is kept on failure. */
int api_parse(const service *s, bool chat, const char *body, size_t size, api_request *r,
              tool_error *err);

/* Bodies; the caller frees them; NULL if memory runs out. The job's lock is not needed: they look
 * at an ended job, or are given the text. */
char *api_answer(const api_request *r, const char *name);
/* One "data: …" event with text[0..size) or, with a reason other than SCHED_RUNNING, the end, then
 * usage where asked for and "[DONE]". */
char *api_event(const api_request *r, const char *name, const char *text, size_t size, bool first,
                sched_reason reason);
char *api_error(int status, const char *message);
char *api_models(const char *name, long created);

#endif
