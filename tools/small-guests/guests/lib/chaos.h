/* What no driver does, at random: the same for the same seed. */
#ifndef SMALL_GUEST_CHAOS_H
#define SMALL_GUEST_CHAOS_H

#include "guest.h"

/* Splitmix64. */
uint64_t random_next(uint64_t *state);

/* Misuses every device there is for ever. What ends a machine at once is left alone unless `deadly`. */
_Noreturn void chaos(uint64_t seed, bool deadly);

#endif
