/* amx.c - the kernel's permission to use AMX tiles.
 *
 * The 8 KB of tile state are off until a process asks for them: the first tile instruction without it is a SIGILL. */
#define _GNU_SOURCE /* syscall */
#include "liger/cpu/amx.h"

#if defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
enum { EDX_AMX_BF16 = 1 << 22, EDX_AMX_TILE = 1 << 24, EDX_AMX_INT8 = 1 << 25 };

bool cpu_amx_request(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
    if (!(edx & EDX_AMX_BF16) || !(edx & EDX_AMX_TILE) || !(edx & EDX_AMX_INT8)) return false;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}
#else
bool cpu_amx_request(void) { return false; }
#endif
