/* linear_logprob_door.h - what the doors of this room refuse alike. Internal. */
#ifndef LIGER_LINEAR_LOGPROB_DOOR_H
#define LIGER_LINEAR_LOGPROB_DOOR_H

#include "liger/core/door.h"
#include "liger/core/fail.h"

static inline liger_status require_temperature(const struct door_call *call, float temperature) {
    LIGER_REQUIRE(temperature > 0, LIGER_ERR_ARGUMENT, "%s: temperature is %g, but must be larger than 0",
                  call->door->function, (double)temperature);
    return LIGER_OK;
}

#endif
