/* float_formats.c - see float_formats.h. */
#include "tests/harness/float_formats.h"

#include <math.h>
#include <string.h>

#include "tests/harness/op_cases.h"

struct format {
    int precision; /* significant bits */
    int smallest;  /* exponent of the smallest subnormal */
    double largest;
};

static struct format format_of(liger_dtype dtype) {
    if (dtype == LIGER_F16) return (struct format){11, -24, 65504.0};
    if (dtype == LIGER_BF16) return (struct format){8, -133, 0x1.fep127};
    return (struct format){24, -149, 0x1.fffffep127};
}

bool format_is_float(liger_dtype dtype) { return dtype == LIGER_F32 || dtype == LIGER_F16 || dtype == LIGER_BF16; }
double format_unit(liger_dtype dtype) { return ldexp(1.0, -format_of(dtype).precision); }
double format_smallest(liger_dtype dtype) { return ldexp(1.0, format_of(dtype).smallest); }
double format_normal(liger_dtype dtype) { return format_smallest(dtype) / format_unit(dtype) / 2; }
double format_largest(liger_dtype dtype) { return format_of(dtype).largest; }

static double power_of_two(int exponent) {
    const uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

static uint64_t bits_of(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
}

static double of_bits(uint64_t bits) {
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

/* Below the normal numbers steps are all alike: next to 1.5 · 2^52 of them double itself has the spacing of one, and rounds
 * as wanted. */
static double round_subnormal(struct format f, double v) {
    const volatile double shifted = v + power_of_two(f.smallest) * 0x1.8p52;
    return copysign(shifted - power_of_two(f.smallest) * 0x1.8p52, v);
}

/* Half a step is added, less one bit where the tie would go to an odd number, and what is below a step is cut off. */
static inline double round_to(struct format f, double v) {
    const uint64_t bits = bits_of(v), exponent = bits >> 52 & 0x7ff;
    const int below = 53 - f.precision;
    if (exponent == 0x7ff) return v;
    if (exponent < (uint64_t)(f.smallest + f.precision - 1 + 1023)) return round_subnormal(f, v);
    const uint64_t raised = bits + ((uint64_t)1 << (below - 1)) - 1 + (bits >> below & 1);
    const double rounded = of_bits(raised >> below << below);
    return fabs(rounded) > f.largest ? copysign(INFINITY, v) : rounded;
}

void format_round(liger_dtype dtype, double *values, int64_t count) {
    const struct format f = format_of(dtype);
    if (dtype == LIGER_F32) /* what the processor does is the definition */
        for (int64_t i = 0; i < count; i++) values[i] = (float)values[i];
    else if (format_is_float(dtype))
        for (int64_t i = 0; i < count; i++) values[i] = round_to(f, values[i]);
}

double op_round(liger_dtype dtype, double v) {
    format_round(dtype, &v, 1);
    return v;
}

static uint16_t f16_bits(double v) { /* v is a value of the format */
    const uint16_t sign = signbit(v) ? 0x8000 : 0;
    if (isnan(v)) return sign | 0x7e00;
    if (isinf(v)) return sign | 0x7c00;
    const double a = fabs(v);
    if (a < 0x1p-14) return sign | (uint16_t)(a * 0x1p24);
    const int exponent = (int)(bits_of(a) >> 52) - 1023;
    return (uint16_t)(sign | ((exponent + 15) << 10) | (int)(bits_of(a) >> 42 & 1023));
}

static double f16_value(uint16_t bits) {
    const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    double a = exponent == 0 ? mantissa * 0x1p-24 : (1.0 + mantissa / 1024.0) * power_of_two(exponent - 15);
    if (exponent == 31) a = mantissa ? NAN : INFINITY;
    return bits & 0x8000 ? -a : a;
}

static uint16_t bf16_bits(double v) { /* likewise */
    const float single = (float)v;
    uint32_t bits;
    memcpy(&bits, &single, sizeof bits);
    return isnan(v) ? 0x7fc0 : (uint16_t)(bits >> 16);
}

static inline void store_float(struct format f, liger_dtype dtype, void *element, double value) {
    const float single = (float)value;
    const uint16_t half = dtype == LIGER_F16 ? f16_bits(round_to(f, value)) : bf16_bits(round_to(f, value));
    if (dtype == LIGER_F32) memcpy(element, &single, 4);
    else memcpy(element, &half, 2);
}

static void store_integer(liger_dtype dtype, void *element, double value) {
    const int32_t i32 = value >= -0x1p31 && value < 0x1p31 ? (int32_t)value : 0;
    const int64_t i64 = isfinite(value) && fabs(value) < 0x1p62 ? (int64_t)value : 0;
    const uint8_t byte = (uint8_t)i32; /* of an i8 too */
    if (dtype == LIGER_I8 || dtype == LIGER_U8 || dtype == LIGER_BOOL) memcpy(element, &byte, 1);
    if (dtype == LIGER_I32) memcpy(element, &i32, 4);
    if (dtype == LIGER_I64) memcpy(element, &i64, 8);
}

/* A dtype that is a constant where this is inlined: a loop over a tensor asks for it once. */
static inline double load(liger_dtype dtype, const void *element) {
    uint16_t half;
    uint32_t bits;
    float single;
    int32_t i32;
    int64_t i64;
    switch (dtype) {
        case LIGER_F32: memcpy(&single, element, 4); return single;
        case LIGER_F16: memcpy(&half, element, 2); return f16_value(half);
        case LIGER_BF16:
            memcpy(&half, element, 2);
            bits = (uint32_t)half << 16;
            memcpy(&single, &bits, 4);
            return single;
        case LIGER_I32: memcpy(&i32, element, 4); return i32;
        case LIGER_I64: memcpy(&i64, element, 8); return (double)i64;
        case LIGER_I8: return *(const int8_t *)element;
        case LIGER_U8:
        case LIGER_BOOL: return *(const uint8_t *)element;
        default: return NAN;
    }
}

#define EACH(body)                                                                                                     \
    for (int64_t i = 0; i < count; i++) body

void format_store_all(liger_dtype dtype, void *elements, const double *values, int64_t count) {
    const struct format f = format_of(dtype);
    char *to = elements;
    switch (dtype) {
        case LIGER_F32: EACH(store_float(f, LIGER_F32, to + 4 * i, values[i])); break;
        case LIGER_F16: EACH(store_float(f, LIGER_F16, to + 2 * i, values[i])); break;
        case LIGER_BF16: EACH(store_float(f, LIGER_BF16, to + 2 * i, values[i])); break;
        default: EACH(store_integer(dtype, to + (int64_t)liger_dtype_size(dtype) * i, values[i]));
    }
}

void format_load_all(liger_dtype dtype, const void *elements, double *values, int64_t count) {
    const char *from = elements;
    switch (dtype) {
        case LIGER_F32: EACH(values[i] = load(LIGER_F32, from + 4 * i)); break;
        case LIGER_F16: EACH(values[i] = load(LIGER_F16, from + 2 * i)); break;
        case LIGER_BF16: EACH(values[i] = load(LIGER_BF16, from + 2 * i)); break;
        default: EACH(values[i] = load(dtype, from + (int64_t)liger_dtype_size(dtype) * i));
    }
}

void format_store(liger_dtype dtype, void *element, double value) { format_store_all(dtype, element, &value, 1); }

double format_load(liger_dtype dtype, const void *element) { return load(dtype, element); }
