/* svg.h - draws lines, rectangles and texts into an SVG file.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#ifndef SVG_H
#define SVG_H

#include <stdio.h>

#if defined(__GNUC__)
#define SVG_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define SVG_PRINTF(text, first)
#endif

/* A white sheet of that size in pixels, or NULL. svg_close says -1 when it could not be written. */
FILE *svg_open(const char *path, int width, int height);
int svg_close(FILE *svg);

/* dash: an SVG dash pattern such as "4 3", or NULL. */
void svg_line(FILE *svg, double x1, double y1, double x2, double y2, const char *color,
              double width, const char *dash);
void svg_rectangle(FILE *svg, double x, double y, double width, double height, const char *color);
void svg_circle(FILE *svg, double x, double y, double radius, const char *color);
void svg_path(FILE *svg, const double *x, const double *y, int n, const char *color, double width);

/* anchor: "start", "middle" or "end"; y is the base line. Turned: read upwards. */
void svg_text(FILE *svg, double x, double y, const char *anchor, double size, const char *color,
              const char *format, ...) SVG_PRINTF(7, 8);
void svg_text_turned(FILE *svg, double x, double y, double size, const char *color,
                     const char *text);

/* The colour of a share in [0, 1], from white to dark blue, evenly in what the eye sees as
   lightness. Returns text. */
const char *svg_shade(double share, char text[8]);

#endif /* SVG_H */
