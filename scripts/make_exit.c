/* SPDX-License-Identifier: Apache-2.0
 *
 * GNU make ends with 2, whatever failed.  `make demo` and `make test` promise 3 where the machine lacks something, so this
 * object, loaded by the Makefile (make's own extension interface, info make "Loading Objects"), ends make with the code
 * that a recipe left in .stamps/exit.  Without a C compiler it is not there, and the code stays 2.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define LEFT ".stamps/exit"

int plugin_is_GPL_compatible;

static void end_as_the_recipe(void)
{
	int code = 0;
	FILE *left = fopen(LEFT, "r");

	if (!left)
		return;
	if (fscanf(left, "%d", &code) != 1)
		code = 0;
	fclose(left);
	unlink(LEFT);
	if (code > 0 && code < 256) {
		fflush(NULL);
		_exit(code);
	}
}

int make_exit_gmk_setup(void)
{
	unlink(LEFT);
	atexit(end_as_the_recipe);
	return 1;
}
