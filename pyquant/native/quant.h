// SPDX-License-Identifier: MIT
// Learning and encoding of the CB family. One shape describes a member of the family; the frozen
// formats have group = 32 and tables = 256, other values serve comparisons.
//
// Everything is deterministic: work is divided in pieces whose results do not depend on who computes
// them, and float sums run in a fixed order (lanes of 16, then a fixed tree), so neither the number
// of threads nor the instruction set changes a bit.
#ifndef LUTRA_QUANT_H
#define LUTRA_QUANT_H

#include "lutra_ref.h"

// Goes up with every change of a function that Python calls: pyquant/_native.py refuses other numbers.
enum { LUTRA_QUANT_ABI = 3 };
int lutra_quant_abi(void);

struct lutra_shape {
    int32_t bits;   // b: bits per code, 1 to 6
    int32_t pair;   // p: weights per code, 1 or 2 (weights j and group/2 + j)
    int32_t group;  // weights per selector: 16, 32 or 64
    int32_t tables; // tables per library, at most 1024
    int32_t sb;     // weights per super-block, a multiple of group
};

enum {
    LUTRA_MAX_GROUP = 64,
    LUTRA_MAX_ENTRIES = 64,
    LUTRA_MAX_TABLES = 1024,
    LUTRA_MAX_BLOCK = 256, // weights of a super-block on a grid
};

#define LUTRA_MAX_WEIGHTS (INT64_C(1) << 48)
#define LUTRA_LARGEST (65504.0f * 127.0f) // weight: an fp16 scale times an int8 entry
#define LUTRA_LEAST 1e-30f                // importance
#define LUTRA_MOST 1e30f

// Functions that return it check their arguments, all but the lengths of arrays, before they compute: shapes
// as above, k a multiple of sb, entries from -127, codes and selectors that exist, weights and importances
// within their bounds.
enum lutra_status {
    LUTRA_DONE,
    LUTRA_NO_MEMORY,
    LUTRA_REFUSED, // for what the arguments are
};

// ---- check.c -------------------------------------------------------------------------------

bool lutra_valid_shape(const struct lutra_shape *shape);
bool lutra_valid_matrix(const struct lutra_shape *shape, int64_t rows, int64_t k);
bool lutra_valid_library(const struct lutra_shape *shape, const int8_t *library);
bool lutra_valid_codes(const struct lutra_shape *shape, int64_t rows, int64_t k, const uint8_t *codes,
                       const uint16_t *selectors);
bool lutra_valid_weights(int64_t n, const float *w, const float *importance, int64_t importances);
bool lutra_all_within(int64_t n, const float *x, float least, float most);

// Index of the first weight that is NaN, infinite or beyond LUTRA_LARGEST in magnitude; -1 when there is
// none.
int64_t lutra_find_bad(int64_t n, const float *w);

// ---- learn.c -------------------------------------------------------------------------------

// The sample that a library is learned from: `blocks` super-blocks of weights (and of importances,
// or NULL), kept by the caller, and not changed, for as long as the learner lives.
struct lutra_learner;
enum lutra_status lutra_learner_new(const struct lutra_shape *shape, int64_t blocks, const float *w,
                                    const float *importance, struct lutra_learner **learner);
void lutra_learner_free(struct lutra_learner *learner);

// One iteration over `blocks` super-blocks of the sample from `first` on: every group picks its table (and,
// with `scales`, every super-block its d), then every table moves to the centroids of its weights and, with
// the factor `memory`, of those of earlier iterations. candidates: see lutra_encode. error: the weighted
// squared one before the move.
enum lutra_status lutra_learner_step(struct lutra_learner *learner, int64_t first, int64_t blocks,
                                     bool scales, double memory, double revive, int candidates, int threads,
                                     int8_t *library, double *error);

// ---- encode.c ------------------------------------------------------------------------------

// rows x k weights -> codes [rows][k/pair] (group by group), selectors [rows][k/group] and fp16 scales
// [rows][k/sb]. importance: [k] per column, or NULL. candidates: tables per group whose error is
// computed exactly after the coarse search; 0 for all of them (full search). error: the weighted squared one.
enum lutra_status lutra_encode(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                               const float *importance, const int8_t *library, int candidates, int threads,
                               uint8_t *codes, uint16_t *selectors, uint16_t *d, double *error);

// ---- exact.c -------------------------------------------------------------------------------

// Codes, selectors and scales as above that stand for exactly these weights. Where there are none, `exact` is
// false and what was written has no meaning. sb: at most LUTRA_MAX_BLOCK.
enum lutra_status lutra_encode_exact(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                                     const int8_t *library, int threads, uint8_t *codes, uint16_t *selectors,
                                     uint16_t *d, bool *exact);

// n weights, at most LUTRA_MAX_BLOCK, as multiples q of d, the largest that there is; false where these are
// beyond -127 and 127, or d is no half.
bool lutra_multiples(const float *w, int n, int8_t *q, uint16_t *d);

// ---- bipolar.c -----------------------------------------------------------------------------

// The weights as d * scale[selector] * (2 * level - (2^bits - 1)), levels [rows][k] from 0 to 2^bits - 1.
// scale [scales]: falling, from 2^-10 to 127. Super-blocks that are odd integers times a half have that as d,
// and the scale 1, if there is one. Of other groups the smallest scale that cuts nothing off is tried, and
// every step-th after it, `tries` in all: the one with the least squared error is taken. Of the shape, group
// and sb count.
enum lutra_status lutra_encode_bipolar(const struct lutra_shape *shape, int bits, int64_t rows, int64_t k,
                                       const float *w, int scales, const float *scale, int step, int tries,
                                       int threads, uint8_t *levels, uint16_t *selectors, uint16_t *d);

// ---- layers.c ------------------------------------------------------------------------------

// A second layer of codes under the selectors and scales of the first: w [rows][k] is what the first leaves,
// first [rows][k] its entries, selectors [rows][k/group], d [rows][k/sb]. Entries of both layers add up to
// -127 to 127.

// The library from a sample; importance [rows][k], or NULL. Tables that the sample has no groups of are
// zeros.
enum lutra_status lutra_layer_learn(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                                    const float *importance, const int8_t *first, const uint16_t *selectors,
                                    const uint16_t *d, int threads, int8_t *library);

// Codes, as lutra_encode's; importance [k], or NULL. Also refused: an entry of the first layer to which a
// table has nothing to add.
enum lutra_status lutra_layer_encode(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                                     const float *importance, const int8_t *first, const uint16_t *selectors,
                                     const uint16_t *d, const int8_t *library, int threads, uint8_t *codes,
                                     double *error);

// ---- pack.c --------------------------------------------------------------------------------

// Interleaves the result of lutra_encode into strips (formats/cb.h): group = 32, at most 256 tables, sb a
// multiple of 64, rows of 8.
enum lutra_status lutra_pack(const struct lutra_shape *shape, int64_t rows, int64_t k, const uint8_t *codes,
                             const uint16_t *selectors, const uint16_t *d, int threads, uint8_t *strips);

// The same for the codes of a second layer, whose shape it is.
enum lutra_status lutra_pack_second(const struct lutra_shape *shape, int64_t rows, int64_t k,
                                    const uint8_t *codes, int threads, uint8_t *second);

// ---- gptq.c --------------------------------------------------------------------------------

// The error of one group (32 weights; the two of a pair side by side) given what is around it: (c - q) form
// (c - q)^T, form = factor * D * factor^T with factor unit upper triangular. weight: D, of single weights in
// [j][0], of pairs the rows of their 2x2 blocks; its diagonal within the bounds of importances. inverse turns
// what other groups' errors do to this one into a shift of its target.
struct lutra_group_form {
    float form[32][32], factor[32][32], weight[32][2], inverse[32][32];
};

// Selectors and codes of rows x k weights, group by group from the left; d [rows][k/32] is the scale of every
// group. Not `again`: coupling [k][k] is what an error adds to the targets of the weights to its right.
// `again`: it is the Hessian, and codes and selectors are improved, each group given all others. loss [rows]:
// the error of each row. group = 32, at least 32 tables; single weights of 3 or 4 bits, pairs of 4 or 5. Also
// refused: numbers from which no finite error comes; codes and selectors are then some that exist.
//
// first [rows][k], or NULL: for a second layer (see above) of any shape, whose selectors are given. Also
// refused: entries of the first layer to which a table has nothing to add.
enum lutra_status lutra_gptq(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *w,
                             const int8_t *first, const struct lutra_group_form *forms, const float *coupling,
                             const int8_t *library, const float *d, bool again, int threads, uint8_t *codes,
                             uint16_t *selectors, double *loss);

// ---- refit.c -------------------------------------------------------------------------------

// The weights for entries [tables][pair][1 << bits] that need not be int8, and scales d [rows][k/sb].
enum lutra_status lutra_look_up(const struct lutra_shape *shape, int64_t rows, int64_t k,
                                const float *entries, const uint8_t *codes, const uint16_t *selectors,
                                const float *d, float *w);

// Its transpose: adds d * x, x [rows][k], to the sum of the entry that each weight looks up.
enum lutra_status lutra_sum_entries(const struct lutra_shape *shape, int64_t rows, int64_t k, const float *x,
                                    const uint8_t *codes, const uint16_t *selectors, const float *d,
                                    double *sums);

// ---- search.c ------------------------------------------------------------------------------

struct lutra_search;
struct lutra_search *lutra_search_new(const struct lutra_shape *shape, const int8_t *library, bool weighted);
void lutra_search_free(struct lutra_search *search);

// Scale, selectors and codes (both optional) of one super-block. `*d` is fp16; on entry the scale to
// start from, unless `scales` asks for a search of the best. cost: weighted squared error per group.
void lutra_search_block(const struct lutra_search *search, const float *w, const float *importance,
                        bool scales, int candidates, uint16_t *d, uint16_t *selectors, uint8_t *codes,
                        float *cost);

// error[tables]: what every table costs a group of normalised weights x, by the coarse search alone, in units
// of its own. For a search made `weighted`.
void lutra_search_coarse(const struct lutra_search *search, const float *x, const float *weight,
                         uint16_t *error);

// Nearest codes of one group of normalised weights in one table of a library; returns the weighted squared
// error.
float lutra_nearest(const struct lutra_shape *shape, const int8_t *table, const float *x,
                    const float *importance, uint8_t *codes);

// ---- parallel.c ----------------------------------------------------------------------------

// task(context, i) for all i in [0, n), on `threads` threads (the caller is one of them).
typedef void lutra_task(void *context, int64_t i);
void lutra_parallel(int64_t n, int threads, lutra_task *task, void *context);

#endif
