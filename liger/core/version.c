/* version.c - the version of the library itself. */
#include "liger/core/version.h"

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)

const char *liger_version_string(void) {
    _Static_assert(sizeof(LIGER_VERSION) ==
                       sizeof(TEXT(LIGER_VERSION_MAJOR) "." TEXT(LIGER_VERSION_MINOR) "." TEXT(LIGER_VERSION_PATCH)),
                   "LIGER_VERSION and its numbers differ");
    return TEXT(LIGER_VERSION_MAJOR) "." TEXT(LIGER_VERSION_MINOR) "." TEXT(LIGER_VERSION_PATCH);
}
