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

double op_round(liger_dtype dtype, double v) {
    if (!format_is_float(dtype) || v == 0 || !isfinite(v)) return v;
    if (dtype == LIGER_F32) return (float)v; /* what the processor does is the definition */
    const struct format f = format_of(dtype);
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    const int exponent = (int)(bits >> 52 & 0x7ff) - 1022; /* v = m · 2^exponent, 1/2 <= |m| < 1 */
    const int step = exponent - f.precision > f.smallest ? exponent - f.precision : f.smallest;
    /* Next to 1.5 · 2^52 steps, double itself has the spacing of one step, and rounds as wanted. */
    const volatile double shifted = v + power_of_two(step) * 0x1.8p52;
    const double rounded = shifted - power_of_two(step) * 0x1.8p52;
    return fabs(rounded) > f.largest ? copysign(INFINITY, v) : rounded;
}

static uint64_t bits_of(double v) {
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    return bits;
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

static void store_float(liger_dtype dtype, void *element, double value) {
    const double rounded = op_round(dtype, value);
    const float single = (float)rounded;
    const uint16_t half = dtype == LIGER_F16 ? f16_bits(rounded) : dtype == LIGER_BF16 ? bf16_bits(rounded) : 0;
    if (dtype == LIGER_F32) memcpy(element, &single, 4);
    else memcpy(element, &half, 2);
}

void format_store(liger_dtype dtype, void *element, double value) {
    if (format_is_float(dtype)) {
        store_float(dtype, element, value);
        return;
    }
    const int32_t i32 = isfinite(value) && fabs(value) < 0x1p31 ? (int32_t)value : 0;
    const int64_t i64 = isfinite(value) && fabs(value) < 0x1p62 ? (int64_t)value : 0;
    if (dtype == LIGER_I32) memcpy(element, &i32, 4);
    if (dtype == LIGER_I64) memcpy(element, &i64, 8);
}

double format_load(liger_dtype dtype, const void *element) {
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
        default: return NAN;
    }
}
