/* overlap.c - whether two strided views, or two elements of one, share a byte, decided exactly where strides nest.
 *
 * A byte of view a is at base + Σ i·stride + p with 0 <= p < element size, one of b likewise. Both are the same byte if
 * the difference of the sums makes up for the difference of the bases. Counting b's indices from their far end makes
 * every sign positive, and the question becomes: is there x with Σ x·step = distance, 0 <= x <= most, one term for each
 * stride of either view and one of step 1 for the bytes of an element? Terms are tried from the largest step down; what
 * the smaller ones can reach leaves one or two values of x for strides that nest, which all ordinary layouts do. */
#include "liger/core/overlap.h"

/* Values of x tried before the answer is "perhaps": ordinary views need a dozen. */
enum { MOST_TRIES = 4096, MOST_TERMS = 2 * LIGER_MAX_DIMS + 1 };

struct term {
    uint64_t step, most; /* 0 <= x <= most, step > 0 */
};

struct sum {
    struct term term[MOST_TERMS];   /* steps ascending, each only once */
    uint64_t reach[MOST_TERMS + 1]; /* reach[n]: the largest value of the first n terms */
    bool dense[MOST_TERMS + 1];     /* dense[n]: they take every value from 0 to reach[n] */
    int count, tries;
};

static uint64_t magnitude(int64_t stride) { return stride < 0 ? (uint64_t)-stride : (uint64_t)stride; }

/* Inserts in order; equal steps are one term. */
static void add_term(struct sum *sum, uint64_t step, uint64_t most) {
    int at = 0;
    if (step == 0 || most == 0) return;
    while (at < sum->count && sum->term[at].step < step) at++;
    if (at < sum->count && sum->term[at].step == step) {
        sum->term[at].most += most;
        return;
    }
    for (int k = sum->count++; k > at; k--) sum->term[k] = sum->term[k - 1];
    sum->term[at] = (struct term){step, most};
}

static void add_view(struct sum *sum, const liger_tensor *view) {
    const uint64_t size = liger_dtype_size(view->dtype);
    for (int d = 0; d < view->ndim; d++)
        if (view->shape[d] > 1) add_term(sum, magnitude(view->stride[d]) * size, (uint64_t)view->shape[d] - 1);
    add_term(sum, 1, size - 1);
}

static void measure(struct sum *sum) {
    sum->reach[0] = 0;
    sum->dense[0] = true;
    for (int n = 0; n < sum->count; n++) {
        sum->reach[n + 1] = sum->reach[n] + sum->term[n].step * sum->term[n].most;
        sum->dense[n + 1] = sum->dense[n] && sum->term[n].step <= sum->reach[n] + 1;
    }
}

/* Whether the first n terms take the value `distance`; true as well when tries run out. */
static bool takes(struct sum *sum, int n, uint64_t distance) {
    if (distance > sum->reach[n]) return false;
    if (sum->dense[n]) return true;
    const struct term term = sum->term[n - 1];
    const uint64_t rest = sum->reach[n - 1], missing = distance > rest ? distance - rest : 0;
    const uint64_t first = missing / term.step + (missing % term.step > 0);
    const uint64_t last = distance / term.step < term.most ? distance / term.step : term.most;
    for (uint64_t x = first; x <= last; x++)
        if (++sum->tries > MOST_TRIES || takes(sum, n - 1, distance - x * term.step)) return true;
    return false;
}

bool liger_views_collide(const liger_tensor *a, const liger_tensor *b) {
    const struct byte_span one = liger_byte_span(a), other = liger_byte_span(b);
    struct sum sum = {.count = 0};
    if (!liger_spans_meet(one, other)) return false;
    add_view(&sum, a);
    add_view(&sum, b);
    measure(&sum);
    /* From the first byte of a to the last of b, which b's indices are counted from. */
    return takes(&sum, sum.count, (uint64_t)(other.end - 1 - one.begin));
}

/* The dimensions of a view with more than one element, strides ascending. */
struct steps {
    struct term term[LIGER_MAX_DIMS];
    int count;
};

static void add_step(struct steps *steps, uint64_t step, uint64_t most) {
    int at = steps->count++;
    for (; at > 0 && steps->term[at - 1].step > step; at--) steps->term[at] = steps->term[at - 1];
    steps->term[at] = (struct term){step, most};
}

/* Two elements whose indices differ in dimension n, and beyond it not, meet if step·(1 + x) = Σ ± i·step of the dimensions
 * below it. Adding `most` steps of each makes every sign positive, as above. */
static bool meets_below(const struct steps *steps, int n, uint64_t reach) {
    struct sum sum = {.count = 0};
    for (int k = 0; k < n; k++) add_term(&sum, steps->term[k].step, 2 * steps->term[k].most);
    add_term(&sum, steps->term[n].step, steps->term[n].most - 1);
    measure(&sum);
    return takes(&sum, sum.count, reach - steps->term[n].step);
}

/* As nearly all do: every stride reaches beyond all that lies inside of it. */
static bool nests(const liger_tensor *view) {
    uint64_t reach = 0;
    for (int d = view->ndim - 1; d >= 0; d--) {
        if (view->shape[d] <= 1) continue;
        if (magnitude(view->stride[d]) <= reach) return false;
        reach += magnitude(view->stride[d]) * ((uint64_t)view->shape[d] - 1);
    }
    return true;
}

bool liger_view_repeats(const liger_tensor *view) {
    struct steps steps = {.count = 0};
    uint64_t reach = 0;
    if (nests(view)) return false;
    for (int d = 0; d < view->ndim; d++) {
        if (view->shape[d] == 0) return false;
        if (view->shape[d] > 1) add_step(&steps, magnitude(view->stride[d]), (uint64_t)view->shape[d] - 1);
    }
    for (int n = 0; n < steps.count; n++) {
        const struct term term = steps.term[n];
        if (term.step == 0 || (term.step <= reach && meets_below(&steps, n, reach))) return true;
        reach += term.step * term.most;
    }
    return false;
}
