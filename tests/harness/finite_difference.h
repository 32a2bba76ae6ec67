/* finite_difference.h - the slope of a function along one of its inputs, by differences. */
#ifndef TESTS_HARNESS_FINITE_DIFFERENCE_H
#define TESTS_HARNESS_FINITE_DIFFERENCE_H

/* d f / d *x. Central differences at two steps, extrapolated (error of fourth order); *x is put back. */
double finite_difference(double (*f)(void *argument), void *argument, double *x);

#endif
