/* Runs a fuzz target over the files of a corpus, for compilers without libFuzzer and for CI:
 *     replay_NAME DIRECTORY-OR-FILE…
 * Every file is also run with each of its bytes cut off at the end in turn (short ones), which
 * covers truncation everywhere. */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_CUTS = 2048 };

static int run_file(const char *path)
{
    FILE *file = fopen(path, "rb");
    uint8_t *data = NULL;
    size_t size = 0, capacity = 0, got = 1;
    while (file != NULL && got > 0) {
        if (size == capacity) {
            capacity = capacity == 0 ? 65536 : 2 * capacity;
            uint8_t *grown = realloc(data, capacity);
            if (grown == NULL) break;
            data = grown;
        }
        got = fread(data + size, 1, capacity - size, file);
        size += got;
    }
    if (file == NULL || ferror(file) || data == NULL) {
        perror(path);
        if (file != NULL) fclose(file);
        free(data);
        return 0;
    }
    fclose(file);
    size_t cuts = size < MAX_CUTS ? size : 0;
    for (size_t n = size - cuts; n <= size; n++) {
        /* A block of exactly n bytes, so that a sanitizer sees every byte read past it. */
        uint8_t *exact = malloc(n > 0 ? n : 1);
        if (exact == NULL) abort();
        memcpy(exact, data, n);
        LLVMFuzzerTestOneInput(exact, n);
        free(exact);
    }
    free(data);
    return 1;
}

static int run_directory(const char *path)
{
    DIR *directory = opendir(path);
    if (directory == NULL) {
        perror(path);
        return 0;
    }
    int ran = 0;
    for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
        char file[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        ran += run_file(file);
    }
    closedir(directory);
    return ran;
}

int main(int argc, char **argv)
{
    int ran = 0;
    for (int i = 1; i < argc; i++) {
        struct stat info;
        if (stat(argv[i], &info) == 0 && S_ISDIR(info.st_mode))
            ran += run_directory(argv[i]);
        else
            ran += run_file(argv[i]);
    }
    printf("%d inputs\n", ran);
    return ran > 0 ? 0 : 1;
}
