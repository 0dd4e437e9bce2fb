/* svg.c - see svg.h.
 * SPDX-License-Identifier: MIT. Copyright 2026 the longattn authors. */
#include "svg.h"

#include <stdarg.h>

FILE *svg_open(const char *path, int width, int height) {
  FILE *svg = fopen(path, "w");
  if (!svg) return NULL;
  fprintf(svg,
          "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
          "viewBox=\"0 0 %d %d\" font-family=\"Helvetica, Arial, sans-serif\">\n",
          width, height, width, height);
  svg_rectangle(svg, 0, 0, width, height, "#ffffff");
  return svg;
}

int svg_close(FILE *svg) {
  fprintf(svg, "</svg>\n");
  int bad = ferror(svg);
  return fclose(svg) || bad ? -1 : 0;
}

void svg_line(FILE *svg, double x1, double y1, double x2, double y2, const char *color,
              double width, const char *dash) {
  fprintf(svg,
          "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"%s\" "
          "stroke-width=\"%.1f\"%s%s%s/>\n",
          x1, y1, x2, y2, color, width, dash ? " stroke-dasharray=\"" : "", dash ? dash : "",
          dash ? "\"" : "");
}

void svg_rectangle(FILE *svg, double x, double y, double width, double height, const char *color) {
  fprintf(svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" fill=\"%s\"/>\n", x, y,
          width, height, color);
}

void svg_circle(FILE *svg, double x, double y, double radius, const char *color) {
  fprintf(svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"%s\"/>\n", x, y, radius, color);
}

void svg_path(FILE *svg, const double *x, const double *y, int n, const char *color, double width) {
  fprintf(svg,
          "<polyline fill=\"none\" stroke=\"%s\" stroke-width=\"%.1f\" stroke-linejoin=\"round\" "
          "points=\"",
          color, width);
  for (int i = 0; i < n; i++) fprintf(svg, "%s%.1f,%.1f", i ? " " : "", x[i], y[i]);
  fprintf(svg, "\"/>\n");
}

/* The three characters that XML wants spelled out. */
static void put_escaped(FILE *svg, const char *text) {
  for (; *text; text++)
    if (*text == '&') fputs("&amp;", svg);
    else if (*text == '<') fputs("&lt;", svg);
    else if (*text == '>') fputs("&gt;", svg);
    else fputc(*text, svg);
}

void svg_text(FILE *svg, double x, double y, const char *anchor, double size, const char *color,
              const char *format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  fprintf(svg, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%.1f\" fill=\"%s\">", x,
          y, anchor, size, color);
  put_escaped(svg, text);
  fprintf(svg, "</text>\n");
}

void svg_text_turned(FILE *svg, double x, double y, double size, const char *color,
                     const char *text) {
  fprintf(svg,
          "<text transform=\"translate(%.1f %.1f) rotate(-90)\" text-anchor=\"middle\" "
          "font-size=\"%.1f\" fill=\"%s\">",
          x, y, size, color);
  put_escaped(svg, text);
  fprintf(svg, "</text>\n");
}

const char *svg_shade(double share, char text[8]) {
  static const double from[3] = {247, 251, 255}, middle[3] = {107, 174, 214}, to[3] = {8, 69, 148};
  int rgb[3];
  for (int i = 0; i < 3; i++)
    rgb[i] = (int)(share < 0.5 ? from[i] + (middle[i] - from[i]) * 2 * share
                               : middle[i] + (to[i] - middle[i]) * (2 * share - 1));
  snprintf(text, 8, "#%02x%02x%02x", (unsigned)rgb[0] & 255, (unsigned)rgb[1] & 255,
           (unsigned)rgb[2] & 255);
  return text;
}
