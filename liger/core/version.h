/* version.h - which library this is: the header's version at compile time, the library's at run time. */
#ifndef LIGER_CORE_VERSION_H
#define LIGER_CORE_VERSION_H

#include "liger/core/status.h"

#define LIGER_VERSION_MAJOR 0
#define LIGER_VERSION_MINOR 9
#define LIGER_VERSION_PATCH 0
#define LIGER_VERSION "0.9.0"

#ifdef __cplusplus
extern "C" {
#endif

/* The version of the library that is loaded, e.g. "0.9.0"; it may differ from LIGER_VERSION of the headers. */
LIGER_API const char *liger_version_string(void);

#ifdef __cplusplus
}
#endif
#endif
