/* pkv-run: a small runtime on ggml whose cache and attention are pagedkv. */
#include "cli.h"
#include "run.h"

static const cli_verb verbs[] = {
    {"generate", run_generate, "text from a prompt, streamed"},
#ifdef PKV_RUN_SERVE
    {"serve", run_serve, "an OpenAI-compatible server"},
#endif
    {"bench", run_bench, "prompts, decode steps and requests beside libllama"},
    {"compare", run_compare, "greedy tokens beside libllama's"},
    {0},
};

int main(int argc, char **argv)
{
    static const cli_program program = {
        .name = "pkv-run",
        .summary = "Runs a GGUF model with ggml's products and pagedkv's cache and attention.",
        .verbs = verbs};
    return cli_main(&program, argc, argv);
}
