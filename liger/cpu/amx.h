/* amx.h - the kernel's permission to use AMX tiles. Internal. */
#ifndef LIGER_CPU_AMX_H
#define LIGER_CPU_AMX_H

#include <stdbool.h>

/* Asks Linux for the tile registers on behalf of the whole process; to be called once, before threads that use them are
 * started. False if the kernel, the processor or the architecture does not have them. */
bool cpu_amx_request(void);

#endif
