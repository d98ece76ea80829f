//! A report as one HTML file that needs nothing else.

use minijinja::{Environment, Value, context};

use crate::failure::{Failure, Result};

/// A table with a heading.
#[derive(Debug, Clone, PartialEq)]
pub struct Section {
    /// What it is about.
    pub title: String,
    /// Names of the columns; the first is left-aligned.
    pub header: Vec<String>,
    /// The rows.
    pub rows: Vec<Vec<String>>,
}

/// What a page shows.
pub struct Page<'a> {
    /// Heading.
    pub title: &'a str,
    /// What was measured, in a sentence or two.
    pub summary: &'a str,
    /// Tables.
    pub sections: &'a [Section],
    /// How the numbers are defined.
    pub definitions: &'a str,
    /// Pictures as SVG.
    pub pictures: &'a [String],
    /// The command that makes the page.
    pub command: &'a str,
}

impl Page<'_> {
    /// The page as HTML; every text is escaped, pictures are taken as they are.
    ///
    /// # Errors
    /// [`Failure::Run`] with the template engine's reason.
    pub fn html(&self) -> Result<String> {
        let mut environment = Environment::new();
        let Page { title, summary, sections, definitions, pictures, command } = *self;
        let section = |s: &Section| context! { title => s.title.clone(), header => s.header.clone(), rows => s.rows.clone() };
        let sections: Vec<Value> = sections.iter().map(section).collect();
        let pictures = pictures.to_vec();
        let values = context! { title, summary, sections, definitions, pictures, command };
        let render = |environment: &mut Environment<'_>| {
            // Names that end in .html are escaped.
            environment.add_template("report.html", include_str!("report.html"))?;
            environment.get_template("report.html")?.render(values)
        };
        render(&mut environment).map_err(|e| Failure::caused("cannot write the report", e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_escaped_and_pictures_are_not() {
        let section = Section { title: "a<b".into(), header: vec!["method".into()], rows: vec![vec!["x & y".into()]] };
        let page = Page {
            title: "t",
            summary: "s",
            sections: &[section],
            definitions: "d",
            pictures: &["<svg></svg>".to_string()],
            command: "steadfast sweep <x>",
        };
        let html = page.html().unwrap();
        for word in ["a&lt;b", "x &amp; y", "<figure><svg></svg></figure>", "sweep &lt;x&gt;"] {
            assert!(html.contains(word), "{word} is missing in {html}");
        }
        assert!(!html.contains("http"), "nothing is loaded from elsewhere");
    }
}
