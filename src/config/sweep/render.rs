//! A sweep as text, complete and in its order.

use std::fmt::Write as _;

use toml::Value;

use super::{Best, SweepConfig, Word};

impl SweepConfig {
    /// The sweep as TOML, with every default filled in, varying the experiment called `base`.
    pub fn resolved(&self, base: &str) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(&text);
            out.push('\n');
        };
        line(format!("name = {}", quoted(self.name.get_ref())));
        line(format!("base = {}", quoted(base)));
        line(format!("seeds = {:?}", self.seeds.get_ref()));
        line(format!("set = {}", list(&self.set)));
        line(format!("metrics = {}", list(&self.metrics)));
        for axis in &self.axis {
            line(format!("\n[[axis]]\nname = {}\n[axis.values]", quoted(axis.name.get_ref())));
            for (label, value) in &axis.values.entries {
                let label = quoted(label.get_ref());
                match value.ignores.as_slice() {
                    [] => line(format!("{label} = {}", list(&value.set))),
                    ignores => line(format!("{label} = {{ set = {}, ignores = {} }}", list(&value.set), list(ignores))),
                }
            }
        }
        for rule in &self.skip {
            line("\n[[skip]]".to_string());
            for (axis, labels) in &rule.entries {
                line(format!("{axis} = {}", list(labels)));
            }
        }
        if let Some(compare) = &self.compare {
            line(format!("\n[compare]\naxis = {}\nto = {}", quoted(compare.axis.get_ref()), quoted(compare.to.get_ref())));
        }
        if let Some(select) = &self.select {
            let best = match select.best {
                Best::Highest => "highest",
                Best::Lowest => "lowest",
            };
            line(format!("\n[select]\naxis = {}\nby = {}\nbest = \"{best}\"", quoted(select.axis.get_ref()), quoted(select.by.get_ref())));
        }
        if let Some(n) = &self.normalise {
            line(format!("\n[normalise]\naxis = {}\nvalue = {}", quoted(n.axis.get_ref()), quoted(n.value.get_ref())));
            line(format!("metric = {}\nzero = {}\nby_seed = {}", quoted(n.metric.get_ref()), quoted(n.zero.get_ref()), n.by_seed));
        }
        for figure in &self.figure {
            line(format!("\n[[figure]]\nname = {}\ntitle = {}", quoted(figure.name.get_ref()), quoted(&figure.title)));
            line(format!("metrics = {}\nx = {}", list(&figure.metrics), quoted(figure.x.get_ref())));
            if let Some(series) = &figure.series {
                line(format!("series = {}\nonly = {}", quoted(series.get_ref()), list(&figure.only)));
            }
        }
        for path in &self.path {
            line(format!("\n[[path]]\nname = {}\ntitle = {}", quoted(path.name.get_ref()), quoted(&path.title)));
            line(format!("x = {}\ny = {}", quoted(path.x.get_ref()), quoted(path.y.get_ref())));
            if let Some(series) = &path.series {
                line(format!("series = {}\nonly = {}", quoted(series.get_ref()), list(&path.only)));
            }
        }
        for i in &self.interpolate {
            line(format!("\n[[interpolate]]\ncolumn = {}\nalong = {}", quoted(i.column.get_ref()), quoted(i.along.get_ref())));
            line(format!("at = {:?}", i.at.get_ref()));
        }
        out
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_string()).to_string()
}

fn list(words: &[Word]) -> String {
    let mut text = String::from("[");
    for (i, word) in words.iter().enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        write!(text, "{separator}{}", quoted(word.get_ref())).expect("writing to a string cannot fail");
    }
    text + "]"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::read::parse;

    #[test]
    fn a_resolved_sweep_reads_back_equal() {
        let text = r#"
            name = "all"
            base = "cartpole-ppo"
            seeds = [3, 1]
            set = ["total_steps=1000", "name=\"a'b\""]
            normalise = { axis = "b", value = "true \"quoted\" one" }
            select = { axis = "a", by = "length", best = "lowest" }
            compare = { axis = "a", to = "r selected" }
            [[axis]]
            name = "a"
            values = { "r 2" = ["slots=2"], "r 1" = ["slots=1"], q = [] }
            [[axis]]
            name = "b"
            [axis.values]
            'true "quoted" one' = { set = ["slots=3"], ignores = ["a"] }
            plain = { set = [] }
            [[skip]]
            a = ["q"]
            b = ["plain"]
            [[figure]]
            name = "one"
            x = "b"
            [[figure]]
            name = "two"
            title = "a\nb"
            metrics = ["length"]
            x = "b"
            series = "a"
            only = ["r selected", "q"]
            [[path]]
            name = "three"
            x = "metric_kl"
            y = "length"
            [[path]]
            name = "four"
            title = "d"
            x = "step"
            y = "length"
            series = "a"
            only = ["q"]
            [[interpolate]]
            column = "length"
            along = "metric_kl"
            at = [0.5, 1, 2e-7]
        "#;
        let config = parse("a", text, Path::new("")).unwrap_or_else(|e| panic!("{}", e.render(false, 100))).config;
        let text = config.resolved("base.toml");
        let again = parse("b", &text, Path::new("")).unwrap_or_else(|e| panic!("{text}\n{}", e.render(false, 100))).config;
        assert_eq!(again.base.get_ref(), "base.toml");
        assert_eq!(again.resolved("x"), config.resolved("x"));
        let order =
            |c: &super::SweepConfig| c.axis.iter().flat_map(|a| a.labels().map(str::to_string).collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!(order(&config), ["r 2", "r 1", "q", "true \"quoted\" one", "plain"]);
        assert_eq!(order(&again), order(&config));
        let names = |c: &super::SweepConfig| c.interpolate.iter().flat_map(|i| i.columns().collect::<Vec<_>>()).collect::<Vec<_>>();
        assert_eq!((&again.path, names(&again)), (&config.path, names(&config)));
        assert_eq!(names(&again)[..2], [("length_at_metric_kl_0.5".to_string(), 0.5), ("length_at_metric_kl_1".to_string(), 1.0)]);
        assert_eq!((again.select, again.normalise, again.figure), (config.select, config.normalise, config.figure));
    }
}
