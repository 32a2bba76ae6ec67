/* args.c - how an args struct of any age enters the library. */
#include "liger/core/args.h"

#include <string.h>

liger_status liger_args_import(void *target, size_t size, const void *source, const char *what) {
    LIGER_REQUIRE(source != NULL, LIGER_ERR_ARGUMENT, "%s: args is NULL", what);
    size_t given;
    memcpy(&given, source, sizeof given);
    LIGER_REQUIRE(
        given >= sizeof(size_t) && given <= 65536, LIGER_ERR_ABI,
        "%s: args.size is %zu, which is no size of an args struct (this library's is %zu): initialise it with "
        "the _ARGS_INIT macro",
        what, given, size);
    for (size_t i = size; i < given; i++)
        LIGER_REQUIRE(((const char *)source)[i] == 0, LIGER_ERR_ABI,
                      "%s: args.size is %zu, but this library knows %zu bytes and a later field is set", what, given,
                      size);
    memset(target, 0, size);
    memcpy(target, source, given < size ? given : size);
    return LIGER_OK;
}
