/* A Check program: it lists its cases here; run_suite.c has the one main that runs them. */
#ifndef PKVT_SUITE_H
#define PKVT_SUITE_H

#include <check.h>

/* The program's suite, built once. */
Suite *pkvt_suite(void);

#endif
