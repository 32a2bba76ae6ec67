/* mhc_streams_cpu.h - the usual number of streams as a literal. */
#ifndef LIGER_OPS_MHC_STREAMS_CPU_H
#define LIGER_OPS_MHC_STREAMS_CPU_H

#define WITH_STREAMS(hc, call)                                                                                         \
    do {                                                                                                               \
        if ((hc) == 4) {                                                                                               \
            enum { STREAMS = 4 };                                                                                      \
            call;                                                                                                      \
        } else {                                                                                                       \
            const int64_t STREAMS = hc;                                                                                \
            call;                                                                                                      \
        }                                                                                                              \
    } while (0)

#endif
