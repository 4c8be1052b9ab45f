/* Built-in workloads, so that every tool runs without a trace.
 *
 * `lengths`: independent requests, Poisson arrivals; prompt and answer lengths log-normal, rounded,
 * at least 1, at most `max_tokens` together. No prefix blocks.
 *
 * `chat`: conversations that arrive as a Poisson process. Each starts with one of `prompts` system
 * prompts of `prompt_tokens` tokens (picked with Zipf weights 1/rank), has a geometric number of
 * turns with mean `turns`, a log-normal user message and answer per turn, and an exponential pause
 * with mean `think` seconds between turns. A turn's prompt is everything said before plus the new
 * message, so turns share growing prefixes; its block ids (blocks of `block` tokens) are chained:
 * a full block keeps its id over the turns, a partial last one is new each time. A conversation
 * ends early when `max_tokens` would be exceeded. */
#ifndef TOOLS_SIM_SYNTHETIC_H
#define TOOLS_SIM_SYNTHETIC_H

#include "tool_error.h"
#include "trace.h"

/* Builds a workload from a description: a kind, then optional settings, as in
 * "chat,requests=2000,seed=7". Settings and defaults (lengths / chat):
 *   requests=4000   requests in all
 *   seed=1
 *   rate=4 / 1      arrivals per second: of requests / of conversations
 *   in=600 / 120    median tokens of the prompt / of a user message
 *   in_sigma=1.1    sigma of its logarithm
 *   out=200         median tokens of an answer
 *   out_sigma=0.9   sigma of its logarithm
 *   max_tokens=32768
 *   turns=5, think=30, prompts=8, prompt_tokens=1200, block=512   (chat only)
 * The lengths defaults resemble public chat traces (short prompts, answers of a few hundred tokens,
 * heavy tails). Returns 0, or -1 with err (an unknown kind or setting, a value out of range). The
 * trace's name is "synthetic:KIND". The caller frees *out. */
int synthetic_trace(const char *description, trace *out, tool_error *err);

/* Checks a description without building anything. */
int synthetic_check(const char *description, tool_error *err);

#endif
