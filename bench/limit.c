/* The limit of pipelines: stretches of mapped files, some of them open, copied into batches. */

#include <stdint.h>
#include <string.h>

typedef struct {
    uint64_t state;           /* of the random numbers, not 0 */
    int64_t n_files, n_open;
    int64_t n_starts;         /* of which one is drawn for each sample */
    int64_t rate;             /* samples of a file on average; 0 for no end */
    int64_t n_keys;
    char **begins;            /* by key and file */
    int64_t *steps, *sizes;   /* by key: bytes from one start to the next, and of a sample */
    char *is_open;            /* by file */
    int64_t *files, *left;    /* by place in the active set */
} pipeline;

static int64_t below(pipeline *p, int64_t n)
{
    /* xorshift64*, of which the upper half is taken */
    uint64_t x = p->state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    p->state = x;
    return (int64_t)(((x * 0x2545F4914F6CDD1DULL >> 32) * (uint64_t)n) >> 32);
}

static void open_next(pipeline *p, int64_t place)
{
    int64_t file;
    do {
        file = below(p, p->n_files);
    } while (p->is_open[file]);
    p->is_open[file] = 1;
    p->files[place] = file;
    p->left[place] = p->rate ? 1 + below(p, 2 * p->rate - 1) : INT64_MAX;
}

void start(pipeline *p)
{
    for (int64_t place = 0; place < p->n_open; place++)
        open_next(p, place);
}

void fill(pipeline *p, char **to, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t place = below(p, p->n_open), row;
        if (!p->left[place]) {
            p->is_open[p->files[place]] = 0;
            open_next(p, place);
        }
        p->left[place]--;
        row = below(p, p->n_starts);
        for (int64_t key = 0; key < p->n_keys; key++)
            memcpy(to[key] + i * p->sizes[key],
                   p->begins[key * p->n_files + p->files[place]] + row * p->steps[key],
                   p->sizes[key]);
    }
}
