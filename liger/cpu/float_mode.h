/* float_mode.h - how the processor rounds on this thread, and whether it flushes subnormals. Internal.
 *
 * Each thread has a mode of its own, and a host may set its thread's (torch.set_flush_denormal does). A loop runs in its
 * caller's mode on every thread: otherwise a value's bits would depend on which thread it fell to. */
#ifndef LIGER_CPU_FLOAT_MODE_H
#define LIGER_CPU_FLOAT_MODE_H

#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>
/* Without the six flags of exceptions that have occurred. */
static inline uint64_t float_mode(void) { return _mm_getcsr() & ~0x3fu; }
static inline void set_float_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
static inline uint64_t float_mode(void) {
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static inline void set_float_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
static inline uint64_t float_mode(void) { return 0; }
static inline void set_float_mode(uint64_t mode) { (void)mode; }
#endif

#endif
