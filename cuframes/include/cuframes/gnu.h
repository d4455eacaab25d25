/* Declares the names of Linux and the GNU C library that plain -std=c11 hides. Every header of this library includes
 * it first, since the first header of the C library decides what all of them declare. C++ declares these names anyway.
 */
#ifndef CUFRAMES_GNU_H
#define CUFRAMES_GNU_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <fcntl.h>

#ifndef F_OFD_GETLK
#error "include the headers of cuframes before those of the C library, or compile with -D_GNU_SOURCE"
#endif

#endif
