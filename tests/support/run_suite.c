/* The main of every Check program. Check's own variables choose what runs (CK_RUN_CASE, CK_FORK),
 * how long it may take (CK_TIMEOUT_MULTIPLIER) and what is printed (CK_VERBOSITY). */
#include "suite.h"

int main(void)
{
    SRunner *runner = srunner_create(pkvt_suite());
    srunner_run_all(runner, CK_ENV);
    const int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed != 0;
}
