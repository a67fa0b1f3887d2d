/* One forward pass of a Llama-shaped decoder on a CPU: embedding, layers, logits, in one call and one parallel region.

   A pass over a few rows is bound by reading the weights and by everything that is not a product. So weights lie in
   the order in which they are read, in bfloat16 where that loses nothing, and norms, rotation, attention and the gated
   unit are loops of their own. Arithmetic is float32 throughout. Shapes as in decoder.py: B rows, T new positions,
   N = B * T, E hidden size, H query heads, G key-value heads, D head size, V vocabulary.

   What a row gets does not depend on the rows beside it, to the last bit: every sum has its order, however work is cut
   (but a single new position adds up its scores in another order than several do).

   Written for GCC, whose vector extensions become AVX-512 or AVX2. A vector is as wide as the processor's: GCC keeps
   wider ones in memory, which costs a factor of thirty. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16 /* numbers of a vector */
#define TILE 12  /* rows that are computed together: accumulators and weights fill the registers */
#define SUMS 16  /* vectors in registers when several queries share values */
#else
#define LANES 8
#define TILE 6
#define SUMS 8
#endif
#define PANEL (2 * LANES)   /* outputs that are computed together */
#define PARTS (256 / LANES) /* vectors of the largest head */
#define MANY 8              /* queries that share a key */
#define ROWS_IN_CACHE 240 /* rows that stay near the processor while all weights pass by */
#define QUERIES 16        /* positions whose attention is one piece of work */

int omp_get_thread_num(void);
int omp_get_num_threads(void);

#define INLINE static inline __attribute__((always_inline))

typedef float fvec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef uint32_t uvec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float f8 __attribute__((vector_size(32), aligned(4)));
typedef int32_t i8 __attribute__((vector_size(32)));
typedef float f4 __attribute__((vector_size(16), aligned(4)));

const int64_t lanes = LANES;

/* Kept in step with library.py. */
typedef struct {
    const void *panels; /* [outputs / PANEL][inputs][PANEL]; in bfloat16 [..][LANES][2], both halves lane by lane */
    const float *bias;  /* [outputs], padded to whole panels; or null */
    int64_t inputs, outputs;
    int64_t is_half; /* bfloat16, otherwise float32 */
} Matrix;

typedef struct {
    const float *norm_in, *norm_out, *norm_q, *norm_k; /* the last two may be null */
    Matrix qkv, o, gate_up, down;                      /* a panel of gate_up: LANES gates, then their LANES inputs */
    int64_t window;                                    /* 0: all positions are seen */
} Layer;

typedef struct {
    const Layer *layers;
    const float *norm;
    Matrix embedding, head;
    int64_t num_layers, hidden, inner, num_q, num_kv, head_dim;
    float eps, eps_qk, scale;
} Model;

typedef struct {
    const int64_t *ids, *positions; /* [B, T] */
    const int64_t *places;          /* [B, T]: where in the cache */
    const int64_t *hidden;          /* [B, T, 2]: places from and up to which nothing is seen; or null */
    const int64_t *keep;            /* [B, K]: new positions whose logits are wanted */
    int64_t num_rows, num_new, num_kept;
    float *const *keys, *const *values; /* of each layer, [rows, room, G, D] */
    int64_t room;
    const float *cos, *sin; /* [positions, D]; sines with the sign of their half */
    float *logits;          /* [B * K, V], V padded to whole panels */
    float *scratch;         /* as many floats as scratch_size says */
    int64_t num_threads;
} Pass;

enum Finish { STORE, ADD, GATE };

INLINE int64_t padded(int64_t n) { return (n + PANEL - 1) / PANEL * PANEL; }
INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE fvec load(const float *at) { return *(const fvec *)at; }
INLINE void store(float *at, fvec value) { *(fvec *)at = value; }
INLINE fvec pick(ivec which, fvec a, fvec b) { return (fvec)((which & (ivec)a) | (~which & (ivec)b)); }

INLINE float sum(fvec value) {
#if LANES == 16
    f8 eight = *(f8 *)&value + *((f8 *)&value + 1);
#else
    f8 eight = value;
#endif
    f4 four = *(f4 *)&eight + *((f4 *)&eight + 1);
    return (four[0] + four[1]) + (four[2] + four[3]);
}

/* e^x for x <= 0 to about 1e-7: a power of two and a Taylor polynomial of what is left. */
INLINE fvec exponential(fvec x) {
    x = pick(x < -87.0f, (fvec){0} - 87.0f, x);
    ivec whole = __builtin_convertvector(x * 1.44269504f - 0.5f, ivec);
    fvec power = __builtin_convertvector(whole, fvec);
    fvec r = x - power * 0.693359375f + power * 2.12194440e-4f;
    fvec p = r * (1.0f / 5040) + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return p * (fvec)((whole + 127) << 23);
}

INLINE fvec silu(fvec x) {
    fvec e = exponential(pick(x < 0, x, -x)); /* of -|x|, so that it cannot overflow */
    return pick(x < 0, x * e, x) / (1 + e);
}

/* Products. */

/* While it computes it fetches what comes next, `step` bytes an input: products of few rows wait for weights. */
INLINE void tile(const int rows, const int is_half, const float *x, int64_t stride, const void *panel, int64_t inputs,
                 const char *next, int64_t step, fvec out[][2]) {
    fvec sums[TILE][2];
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) sums[r][0] = sums[r][1] = (fvec){0};
    for (int64_t i = 0; i < inputs; i++) {
        fvec first, second;
        __builtin_prefetch(next, 0, 1), __builtin_prefetch(next + 64, 0, 1);
        next += step;
        if (is_half) {
            uvec pairs = ((const uvec *)panel)[i];
            first = (fvec)(pairs << 16), second = (fvec)(pairs & 0xffff0000);
        } else {
            const float *w = (const float *)panel + i * PANEL;
            first = load(w), second = load(w + LANES);
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            float value = x[r * stride + i];
            sums[r][0] += value * first;
            sums[r][1] += value * second;
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++) out[r][0] = sums[r][0], out[r][1] = sums[r][1];
}

INLINE void tile_of(int rows, const int is_half, const float *x, int64_t stride, const void *panel, int64_t inputs,
                    const char *next, int64_t step, fvec out[][2]) {
#define CASE(n) \
    case n: return tile(n, is_half, x, stride, panel, inputs, next, step, out);
    switch (rows) {
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TILE > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
#undef CASE
}

static void finish_tile(enum Finish finish, const fvec sums[][2], int rows, const float *bias, float *out,
                        int64_t stride) {
    for (int r = 0; r < rows; r++, out += stride) {
        fvec first = sums[r][0], second = sums[r][1];
        if (bias) first += load(bias), second += load(bias + LANES);
        if (finish == GATE) {
            store(out, silu(first) * second);
        } else {
            if (finish == ADD) first += load(out), second += load(out + LANES);
            store(out, first), store(out + LANES, second);
        }
    }
}

/* out = x W^T + bias, or added to what is there, or gated. By all threads of the region, which meet at the end. */
static void multiply(const Matrix *w, enum Finish finish, const float *x, int64_t x_stride, int64_t num_rows,
                     float *out, int64_t out_stride) {
    int64_t num_panels = padded(w->outputs) / PANEL, width = finish == GATE ? LANES : PANEL;
    int64_t num_blocks = (num_rows + ROWS_IN_CACHE - 1) / ROWS_IN_CACHE;
    int64_t block = num_blocks ? (num_rows + num_blocks - 1) / num_blocks : 0;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < num_blocks * num_panels; task++) {
        int64_t number = task % num_panels, row = task / num_panels * block, end = at_most(row + block, num_rows);
        int64_t line = PANEL * (w->is_half ? 2 : 4), num_tiles = (end - row + TILE - 1) / TILE, step = line / num_tiles;
        const char *panel = (const char *)w->panels + number * w->inputs * line;
        const char *next = panel + omp_get_num_threads() * w->inputs * line; /* the other threads have those between */
        const float *bias = w->bias ? w->bias + number * PANEL : 0;
        for (int64_t left = num_tiles; left > 0; left--, next += w->inputs * step) {
            int rows = (int)((end - row + left - 1) / left);
            const float *from = x + row * x_stride;
            fvec sums[TILE][2];
            if (w->is_half)
                tile_of(rows, 1, from, x_stride, panel, w->inputs, next, step, sums);
            else
                tile_of(rows, 0, from, x_stride, panel, w->inputs, next, step, sums);
            finish_tile(finish, (const fvec(*)[2])sums, rows, bias, out + row * out_stride + number * width, out_stride);
            row += rows;
        }
    }
}

/* Norms, rotation, embedding. */

/* x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, eq. 4); x may be out. */
INLINE void normed(const float *x, const float *weight, float eps, int64_t size, float *out) {
    float square = 0;
    int64_t whole = size / LANES * LANES;
    fvec squares = {0};
    for (int64_t i = 0; i < whole; i += LANES) squares += load(x + i) * load(x + i);
    for (int64_t i = whole; i < size; i++) square += x[i] * x[i];
    float factor = 1 / sqrtf((square + sum(squares)) / size + eps);
    for (int64_t i = 0; i < whole; i += LANES) store(out + i, load(x + i) * factor * load(weight + i));
    for (int64_t i = whole; i < size; i++) out[i] = x[i] * factor * weight[i];
}

static void norm_rows(const float *x, const float *weight, float eps, int64_t size, int64_t num_rows, float *out,
                      int64_t stride) {
#pragma omp for
    for (int64_t n = 0; n < num_rows; n++) normed(x + n * stride, weight, eps, size, out + n * stride);
}

static void embed(const Matrix *w, const int64_t *ids, int64_t num_rows, float *out, int64_t stride) {
#pragma omp for
    for (int64_t n = 0; n < num_rows; n++) {
        int64_t begin = ids[n] / PANEL * w->inputs * PANEL, lane = ids[n] % PANEL;
        if (w->is_half) lane = lane % LANES * 2 + lane / LANES;
        for (int64_t i = 0; i < w->inputs; i++) {
            if (w->is_half) {
                uint32_t bits = (uint32_t)((const uint16_t *)w->panels)[begin + lane + i * PANEL] << 16;
                memcpy(out + n * stride + i, &bits, 4);
            } else {
                out[n * stride + i] = ((const float *)w->panels)[begin + lane + i * PANEL];
            }
        }
    }
}

/* x cos + (-x2, x1) sin, for the halves x1 and x2 of a head (Su et al. 2021, eq. 34). */
INLINE void rotate(float *x, const float *cos, const float *sin, int64_t size) {
    int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = x[i], second = x[i + half];
        x[i] = first * cos[i] + second * sin[i];
        x[i + half] = second * cos[i + half] + first * sin[i + half];
    }
}

/* Norms and rotates queries and keys where they are, then puts keys and values into the cache. */
static void place(const Model *m, const Layer *layer, const Pass *p, float *qkv, int64_t stride, float *keys,
                  float *values) {
    int64_t size = m->head_dim, kv = m->num_kv * size;
#pragma omp for
    for (int64_t n = 0; n < p->num_rows * p->num_new; n++) {
        const float *cos = p->cos + p->positions[n] * size, *sin = p->sin + p->positions[n] * size;
        float *own = qkv + n * stride;
        for (int64_t h = 0; h < m->num_q + m->num_kv; h++) {
            const float *weight = h < m->num_q ? layer->norm_q : layer->norm_k;
            if (weight) normed(own + h * size, weight, m->eps_qk, size, own + h * size);
            rotate(own + h * size, cos, sin, size);
        }
        int64_t at = (n / p->num_new * p->room + p->places[n]) * kv;
        memcpy(keys + at, own + m->num_q * size, kv * sizeof(float));
        memcpy(values + at, own + m->num_q * size + kv, kv * sizeof(float));
    }
}

/* Attention. */

/* Scores of one query; keys lie `stride` apart. */
INLINE void score_one(const int parts, const float *q, const float *keys, int64_t stride, int64_t from, int64_t to,
                      float *scores) {
    fvec own[PARTS];
#pragma GCC unroll 32
    for (int i = 0; i < parts; i++) own[i] = load(q + i * LANES);
    for (int64_t l = from; l < to; l++) {
        fvec products = own[0] * load(keys + l * stride);
#pragma GCC unroll 32
        for (int i = 1; i < parts; i++) products += own[i] * load(keys + l * stride + i * LANES);
        scores[l] = sum(products);
    }
}

INLINE void exchange(f8 *square, const int half, const i8 low, const i8 high) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        if (i & half) continue;
        f8 one = square[i], other = square[i + half];
        square[i] = __builtin_shuffle(one, other, low);
        square[i + half] = __builtin_shuffle(one, other, high);
    }
}

/* Keys [LANES][D], `stride` apart, turned round to [D][LANES]. `last`: the last there is; it stands in for those behind
   it. Squares of eight are turned by exchanging ever larger halves (Eklundh 1972). */
INLINE void turn_round(const float *keys, int64_t stride, int64_t last, int64_t size, float *turned) {
    for (int64_t lane = 0; lane < LANES; lane += 8) {
        for (int64_t d = 0; d < size; d += 8) {
            f8 square[8];
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) square[i] = *(const f8 *)(keys + at_most(lane + i, last) * stride + d);
            exchange(square, 1, (i8){0, 8, 2, 10, 4, 12, 6, 14}, (i8){1, 9, 3, 11, 5, 13, 7, 15});
            exchange(square, 2, (i8){0, 1, 8, 9, 4, 5, 12, 13}, (i8){2, 3, 10, 11, 6, 7, 14, 15});
            exchange(square, 4, (i8){0, 1, 2, 3, 8, 9, 10, 11}, (i8){4, 5, 6, 7, 12, 13, 14, 15});
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) *(f8 *)(turned + (d + i) * LANES + lane) = square[i];
        }
    }
}

/* Scores of several queries for LANES keys, which lie turned round: [D][LANES]. */
INLINE void score_many(const int number, const float *const *q, const float *turned, int64_t size, float *out,
                       int64_t room) {
    fvec sums[MANY];
#pragma GCC unroll 8
    for (int j = 0; j < number; j++) sums[j] = (fvec){0};
    for (int64_t d = 0; d < size; d++) {
        fvec key = load(turned + d * LANES);
#pragma GCC unroll 8
        for (int j = 0; j < number; j++) sums[j] += q[j][d] * key;
    }
#pragma GCC unroll 8
    for (int j = 0; j < number; j++) store(out + j * room, sums[j]);
}

/* Shares of scores[from:to], not yet divided by their sum, in place; returns the sum. Behind them is rubbish then. */
INLINE float softmax(float *scores, float scale, int64_t from, int64_t to) {
    float highest = scores[to - 1], total = 0;
    int64_t l = from;
    fvec most = (fvec){0} + highest;
    for (; l + LANES <= to; l += LANES) most = pick(load(scores + l) > most, load(scores + l), most);
    for (; l < to; l++) highest = scores[l] > highest ? scores[l] : highest;
    for (int i = 0; i < LANES; i++) highest = most[i] > highest ? most[i] : highest;
    l = from;
    fvec totals = {0};
    for (; l + LANES <= to; l += LANES) {
        fvec share = exponential((load(scores + l) - highest) * scale);
        store(scores + l, share);
        totals += share;
    }
    if (l < to) {
        fvec share = exponential((load(scores + l) - highest) * scale);
        store(scores + l, share);
        for (; l < to; l++) total += scores[l];
    }
    return total + sum(totals);
}

/* Values by the shares of several queries, which lie `room` apart. */
INLINE void mix(const int parts, const int number, const float *shares, int64_t room, const float *totals,
                const float *values, int64_t stride, int64_t from, int64_t to, float *const *out) {
    fvec sums[SUMS][PARTS];
#pragma GCC unroll 16
    for (int j = 0; j < number; j++)
#pragma GCC unroll 32
        for (int i = 0; i < parts; i++) sums[j][i] = (fvec){0};
    for (int64_t l = from; l < to; l++)
#pragma GCC unroll 32
        for (int i = 0; i < parts; i++) {
            fvec value = load(values + l * stride + i * LANES);
#pragma GCC unroll 16
            for (int j = 0; j < number; j++) sums[j][i] += shares[j * room + l] * value;
        }
#pragma GCC unroll 16
    for (int j = 0; j < number; j++)
#pragma GCC unroll 32
        for (int i = 0; i < parts; i++) store(out[j] + i * LANES, sums[j][i] / totals[j]);
}

/* New positions in the cache. */
typedef struct {
    const int64_t *places, *hidden; /* as in Pass, the latter may be null */
} At;

/* The first place that a new position sees through its window. */
INLINE int64_t first_seen(At at, int64_t n, int64_t window) {
    int64_t from = at.hidden ? at.hidden[2 * n] : 0, gap = at.hidden ? at.hidden[2 * n + 1] - from : 0;
    int64_t first = at.places[n] - gap + 1 - window;
    return window ? at_least(0, first > from ? first + gap : first) : 0;
}

/* The heads of one group at some positions of one row. q, out: of the first position, `stride` apart.
   several: keys are turned round and values loaded once for many queries. */
INLINE void attend_group(const int parts, const Model *m, int64_t window, At at, int64_t num,
                         const float *q, int64_t stride, const float *keys, const float *values, float *out,
                         int64_t out_stride, float *scratch, int64_t room, int several) {
    int64_t size = parts * LANES, each = m->num_q / m->num_kv, kv = m->num_kv * size, queries = num * each;
    float *turned = scratch, *scores = scratch + size * LANES;
    int64_t first = first_seen(at, 0, window), last = at.places[0];
    for (int64_t t = 1; t < num; t++) {
        last = at_least(last, at.places[t]);
        first = at_most(first, first_seen(at, t, window));
    }
    for (int64_t l = first / LANES * LANES; several && l <= last; l += LANES) {
        turn_round(keys + l * kv, kv, last - l, size, turned);
        for (int64_t j = 0; j < queries; j += MANY) {
            const float *own[MANY];
            int number = (int)at_most(MANY, queries - j);
            for (int k = 0; k < number; k++) own[k] = q + (j + k) / each * stride + (j + k) % each * size;
            float *to = scores + j * room + l;
            if (number == MANY)
                score_many(MANY, own, turned, size, to, room);
            else
                for (int k = 0; k < number; k++) score_many(1, own + k, turned, size, to + k * room, room);
        }
    }
    const int together = SUMS / parts > 1 ? SUMS / parts : 1;
    for (int64_t j = 0; j < queries; j += together) {
        float totals[SUMS], *to[SUMS];
        int number = (int)at_most(together, queries - j);
        for (int k = 0; k < number; k++) {
            int64_t t = (j + k) / each, head = (j + k) % each;
            int64_t begin = first_seen(at, t, window), end = at.places[t] + 1;
            float *own = scores + (j + k) * room;
            if (!several) score_one(parts, q + t * stride + head * size, keys, kv, begin, end, own);
            for (int64_t l = at.hidden ? at.hidden[2 * t] : 0; at.hidden && l < at.hidden[2 * t + 1]; l++)
                own[l] = -INFINITY;
            totals[k] = softmax(own, m->scale, begin, end);
            for (int64_t l = first; l < begin; l++) own[l] = 0; /* seen by others only */
            for (int64_t l = end; l <= last; l++) own[l] = 0;
            to[k] = out + t * out_stride + head * size;
        }
        if (number == together)
            mix(parts, together, scores + j * room, room, totals, values, kv, first, last + 1, to);
        else
            for (int k = 0; k < number; k++)
                mix(parts, 1, scores + (j + k) * room, room, totals + k, values, kv, first, last + 1, to + k);
    }
}

/* Room for the scores of one query, with what vectors write beside them. */
INLINE int64_t score_room(const Pass *p) { return padded(p->room) + PANEL; }

INLINE int64_t thread_scratch(const Model *m, const Pass *p) {
    return m->head_dim * LANES + QUERIES * (m->num_q / m->num_kv) * score_room(p);
}

static void attend(const Model *m, const Layer *layer, const Pass *p, At all, int64_t num_each,
                   const float *q, int64_t stride, const float *keys, const float *values, float *out,
                   int64_t out_stride, float *scratch) {
    int64_t size = m->head_dim, each = m->num_q / m->num_kv, pieces = (num_each + QUERIES - 1) / QUERIES;
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < p->num_rows * pieces * m->num_kv; task++) {
        int64_t group = task % m->num_kv, row = task / m->num_kv / pieces;
        int64_t first = task / m->num_kv % pieces * QUERIES, at = row * num_each + first;
        int64_t num = at_most(QUERIES, num_each - first);
        int64_t begin = row * p->room * m->num_kv * size + group * size;
        At these = {all.places + at, all.hidden ? all.hidden + 2 * at : 0};
#define CASE(n)                                                                                                      \
    case n:                                                                                                          \
        attend_group(n / LANES, m, layer->window, these, num, q + at * stride + group * each * size, stride,         \
                     keys + begin, values + begin, out + at * out_stride + group * each * size, out_stride, scratch, \
                     score_room(p), num_each > 1);                                                                   \
        break;
        switch (size) { CASE(16) CASE(32) CASE(48) CASE(64) CASE(80) CASE(96) CASE(128) CASE(256) }
#undef CASE
    }
}

/* The whole. */

typedef struct {
    int64_t x, h, qkv, mixed, inner; /* floats of a row */
} Widths;

INLINE Widths widths(const Model *m) {
    int64_t q = m->num_q * m->head_dim, kv = m->num_kv * m->head_dim;
    return (Widths){padded(m->hidden), padded(m->hidden), padded(q + 2 * kv), padded(q), padded(m->inner)};
}

/* Floats that a pass needs besides its results. */
int64_t scratch_size(const Model *m, const Pass *p) {
    Widths w = widths(m);
    int64_t rows = p->num_rows * at_least(p->num_new, p->num_kept), kept = p->num_rows * p->num_kept;
    return rows * (w.x + w.h + w.qkv + w.mixed + w.inner) + kept * (w.x + w.qkv + 6) +
           p->num_threads * thread_scratch(m, p) + PANEL;
}

void forward(const Model *m, const Pass *p) {
    Widths w = widths(m);
    int64_t num = p->num_rows * p->num_new, num_kept = p->num_rows * p->num_kept, num_each = p->num_new;
    int64_t rows = p->num_rows * at_least(p->num_new, p->num_kept);
    float *x = p->scratch, *h = x + rows * w.x, *qkv = h + rows * w.h, *mixed = qkv + rows * w.qkv;
    float *inner = mixed + rows * w.mixed, *kept_x = inner + rows * w.inner, *kept_q = kept_x + num_kept * w.x;
    int64_t *kept_places = (int64_t *)(((uintptr_t)(kept_q + num_kept * w.qkv) + 7) & ~(uintptr_t)7);
    int64_t *kept_hidden = kept_places + num_kept;
    float *rest = (float *)(kept_hidden + 2 * num_kept);
#pragma omp parallel num_threads(p->num_threads) firstprivate(num, num_each, x, qkv)
    {
        float *own = rest + omp_get_thread_num() * thread_scratch(m, p);
        At at = {p->places, p->hidden};
        embed(&m->embedding, p->ids, num, x, w.x);
        for (int64_t i = 0; i < m->num_layers; i++) {
            const Layer *layer = m->layers + i;
            norm_rows(x, layer->norm_in, m->eps, m->hidden, num, h, w.x);
            multiply(&layer->qkv, STORE, h, w.h, num, qkv, w.qkv);
            place(m, layer, p, qkv, w.qkv, p->keys[i], p->values[i]);
            if (i == m->num_layers - 1) { /* what nobody asks for is not computed to its end */
#pragma omp for
                for (int64_t n = 0; n < num_kept; n++) {
                    int64_t from = n / p->num_kept * p->num_new + p->keep[n];
                    memcpy(kept_x + n * w.x, x + from * w.x, w.x * sizeof(float));
                    memcpy(kept_q + n * w.qkv, qkv + from * w.qkv, m->num_q * m->head_dim * sizeof(float));
                    kept_places[n] = p->places[from];
                    if (p->hidden) memcpy(kept_hidden + 2 * n, p->hidden + 2 * from, 2 * sizeof(int64_t));
                }
                x = kept_x, qkv = kept_q, num = num_kept, num_each = p->num_kept;
                at = (At){kept_places, p->hidden ? kept_hidden : 0};
            }
            attend(m, layer, p, at, num_each, qkv, w.qkv, p->keys[i], p->values[i], mixed, w.mixed, own);
            multiply(&layer->o, ADD, mixed, w.mixed, num, x, w.x);
            norm_rows(x, layer->norm_out, m->eps, m->hidden, num, h, w.x);
            multiply(&layer->gate_up, GATE, h, w.h, num, inner, w.inner);
            multiply(&layer->down, ADD, inner, w.inner, num, x, w.x);
        }
        norm_rows(x, m->norm, m->eps, m->hidden, num, h, w.x);
        multiply(&m->head, STORE, h, w.h, num, p->logits, padded(m->head.outputs));
    }
}
