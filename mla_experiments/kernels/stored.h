/* Attention over rows as a cache keeps them: what `stored.c` and `octets.c` are given. */

#include "vectors.h"

enum { BLOCK = 64 }; /* tokens, a multiple of LANES */

typedef struct {
    int64_t batch, groups, rows, num_new, context, splits, threads, shared; /* rows of a group; shared: values are the
                                                                               first numbers of keys */
    int64_t key_batch, key_group, key_token, value_batch, value_group, value_token; /* in bytes */
    int64_t mask_batch, mask_new;
    float scale;
    form key, value;
} stored_shape; /* row r of a group is new token r % num_new */
