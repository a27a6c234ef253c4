/* SPDX-License-Identifier: Apache-2.0
 *
 * GNU make ends with 2, whatever failed.  `make demo` and `make test` promise 3 where the machine lacks something, so this
 * object, loaded by the Makefile (make's own extension interface, info make "Loading Objects"), ends make with the code
 * that a recipe left in .stamps/exit.  Without a C compiler it is not there, and the code stays 2.
 */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

int plugin_is_GPL_compatible;

static char left_by_recipe[PATH_MAX + sizeof("/.stamps/exit")];

static void end_as_the_recipe(void)
{
	int code = 0;
	FILE *left = fopen(left_by_recipe, "r");

	if (!left)
		return;
	if (fscanf(left, "%d", &code) != 1)
		code = 0;
	fclose(left);
	unlink(left_by_recipe);
	if (code > 0 && code < 256) {
		fflush(NULL);
		_exit(code);
	}
}

int make_exit_gmk_setup(void)
{
	char folder[PATH_MAX];

	if (!getcwd(folder, sizeof(folder)))
		return 1;
	/* whole: make leaves the folder of -C before it ends */
	snprintf(left_by_recipe, sizeof(left_by_recipe), "%s/.stamps/exit", folder);
	unlink(left_by_recipe);
	atexit(end_as_the_recipe);
	return 1;
}
