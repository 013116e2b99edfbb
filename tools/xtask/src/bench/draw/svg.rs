//! A picture as text. Colours are classes of `style.css`, so that one picture is right on light and on dark paper.

use std::fmt::Display;

/// The classes' meaning, for pictures on their own and for the page.
pub const STYLE: &str = include_str!("style.css");

/// Where a text stands to its point.
#[derive(Debug, Clone, Copy)]
pub enum Anchor {
    Start,
    Middle,
    End,
}

/// A picture that grows downwards; sizes are in pixels at full width.
#[derive(Debug)]
pub struct Svg {
    title: String,
    body: String,
    height: f64,
}

impl Svg {
    /// Of every picture; the page scales it.
    pub const WIDTH: f64 = 960.0;

    /// An empty picture with what it says to those who cannot see it.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), body: String::new(), height: 0.0 }
    }

    /// What it is called.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// Makes it at least so high.
    pub fn reach(&mut self, height: f64) {
        self.height = self.height.max(height);
    }

    /// A word or a line.
    pub fn text(&mut self, at: (f64, f64), anchor: Anchor, class: &str, text: impl Display) {
        let (x, y) = at;
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(&text.to_string());
        self.add(&format!(
            r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}" class="{class}">{text}</text>"#
        ));
        self.reach(y + 6.0);
    }

    /// A box with slightly round corners, and what is shown when it is pointed at.
    pub fn bar(&mut self, at: (f64, f64), size: (f64, f64), class: &str, hint: impl Display) {
        let ((x, y), (width, height)) = (at, size);
        let hint = escape(&hint.to_string());
        self.add(&format!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{:.1}" height="{height:.1}" rx="2" class="{class}"><title>{hint}</title></rect>"#,
            width.max(1.0)
        ));
        self.reach(y + height + 2.0);
    }

    /// A straight line.
    pub fn line(&mut self, from: (f64, f64), to: (f64, f64), class: &str) {
        let ((x1, y1), (x2, y2)) = (from, to);
        self.add(&format!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#));
        self.reach(y1.max(y2) + 1.0);
    }

    /// A sample.
    pub fn dot(&mut self, at: (f64, f64), class: &str, hint: impl Display) {
        let (x, y) = at;
        let hint = escape(&hint.to_string());
        self.add(&format!(
            r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" class="{class}"><title>{hint}</title></circle>"#
        ));
        self.reach(y + 4.0);
    }

    fn add(&mut self, element: &str) {
        self.body.push_str(element);
        self.body.push('\n');
    }

    /// For a page that has [`STYLE`].
    pub fn inline(&self) -> String {
        self.with("", 0.0, "")
    }

    /// A file of its own, with a margin.
    pub fn standalone(&self) -> String {
        let paper = r#"<rect x="-24" y="-24" width="100%" height="100%" class="paper"/>"#;
        self.with(
            r#" xmlns="http://www.w3.org/2000/svg""#,
            24.0,
            &format!("<style>{STYLE}</style>\n{paper}\n"),
        )
    }

    fn with(&self, attributes: &str, margin: f64, first: &str) -> String {
        let (width, height) = (Self::WIDTH + 2.0 * margin, self.height + 2.0 * margin);
        let (title, body) = (escape(&self.title), &self.body);
        format!(
            "<svg{attributes} viewBox=\"{:.0} {:.0} {width:.0} {height:.0}\" class=\"chart\" role=\"img\" aria-label=\"{title}\">\n\
             <title>{title}</title>\n{first}{body}</svg>\n",
            0.0 - margin,
            0.0 - margin,
        )
    }
}

/// Text inside markup; what names a figure or a host may hold anything.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_told_becomes_markup() {
        let mut svg = Svg::new("a <b> & \"c\"");
        svg.text((0.0, 10.0), Anchor::Start, "label", "</svg><script>");
        svg.dot((1.0, 1.0), "x", "<i>");
        let text = svg.standalone();
        assert!(!text.contains("<script>") && !text.contains("<b>") && !text.contains("<i>"));
        assert!(text.contains("a &lt;b&gt; &amp; &quot;c&quot;"));
    }

    #[test]
    fn a_picture_is_as_high_as_what_is_in_it() {
        let mut svg = Svg::new("t");
        svg.bar((0.0, 100.0), (10.0, 20.0), "ember", "");
        assert!(svg.inline().contains("viewBox=\"0 0 960 122\""));
    }
}
