//! The CEL rules of the resource's definition, evaluated without an API server. Pure.
//!
//! Only what the definition's rules use of Kubernetes' functions is there: `matches` and `duration`. A rule that asks
//! for more fails to compile here, and a test says so before a release does. Rules about a change (`oldSelf`) can't be
//! judged from a file and are left out.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc};

use cel::{Context, ExecutionError, Program, Value, extractors::This};
use regex::Regex;

use crate::api::Period;

/// The rules of one definition, compiled once each.
pub(super) struct Rules {
    programs: HashMap<String, Program>,
}

/// A rule is not of the kind that can be judged here.
#[derive(Debug, thiserror::Error)]
#[error("the rule {0:?} of the resource's definition can't be judged without an API server")]
pub(super) struct NotJudged(pub String);

impl Rules {
    /// Compiles these rules; those about a change are left out.
    pub fn compile<'a>(rules: impl IntoIterator<Item = &'a str>) -> Result<Self, NotJudged> {
        let mut programs = HashMap::new();
        for rule in rules {
            if programs.contains_key(rule) {
                continue;
            }
            let program = Program::compile(rule).map_err(|_| NotJudged(rule.to_owned()))?;
            let unknown = {
                let names = program.references();
                if names.variables().contains(&"oldSelf") {
                    continue;
                }
                let operator = |name: &str| !name.starts_with(|c: char| c.is_ascii_alphabetic());
                names
                    .functions()
                    .iter()
                    .any(|name| !operator(name) && !["matches", "duration", "size"].contains(name))
            };
            if unknown {
                return Err(NotJudged(rule.to_owned()));
            }
            programs.insert(rule.to_owned(), program);
        }
        Ok(Self { programs })
    }

    /// Whether a value keeps a rule. A rule about a change is kept by every value; one that fails to evaluate is not
    /// kept, as on the API server.
    pub fn keeps(&self, rule: &str, value: &serde_json::Value) -> bool {
        let Some(program) = self.programs.get(rule) else {
            return true;
        };
        let mut context = Context::default();
        context.add_function("matches", matches);
        context.add_function("duration", duration);
        let Ok(value) = cel::to_value(value) else {
            return false;
        };
        context.add_variable_from_value("self", value);
        matches!(program.execute(&context), Ok(Value::Bool(true)))
    }
}

/// The most expressions that are kept: more than a definition has.
const MAX_EXPRESSIONS: usize = 64;

thread_local! {
    /// A rule's expression is a constant: compiled once, not once a value.
    static EXPRESSIONS: RefCell<HashMap<String, Rc<Regex>>> = RefCell::default();
}

#[allow(
    clippy::needless_pass_by_value,
    reason = "the signature that cel hands a function's arguments to"
)]
fn matches(This(text): This<Arc<String>>, expression: Arc<String>) -> Result<bool, ExecutionError> {
    EXPRESSIONS.with_borrow_mut(|known| {
        if let Some(regex) = known.get(expression.as_str()) {
            return Ok(regex.is_match(&text));
        }
        let regex = Regex::new(&expression)
            .map_err(|_| ExecutionError::function_error("matches", "not a regular expression"))?;
        let is = regex.is_match(&text);
        if known.len() < MAX_EXPRESSIONS {
            known.insert(expression.as_ref().clone(), Rc::new(regex));
        }
        Ok(is)
    })
}

/// Kubernetes' `duration`, in nanoseconds: enough to be compared, which is all that the rules do.
#[allow(
    clippy::needless_pass_by_value,
    reason = "the signature that cel hands a function's arguments to"
)]
fn duration(text: Arc<String>) -> Result<i64, ExecutionError> {
    let failed = || ExecutionError::function_error("duration", "not a duration");
    let duration = Period(text.as_ref().clone()).parse().map_err(|_| failed())?;
    i64::try_from(duration.as_nanos()).map_err(|_| failed())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BETWEEN: &str = "!self.matches('^([0-9]+(ms|s|m|h))+$') || (duration(self) >= duration('1m') && \
                           duration(self) <= duration('168h'))";

    #[test]
    fn the_kinds_of_rule_that_the_definition_has_are_judged() {
        let all = "self.all(p, p.matches('^[a-z]+$'))";
        let rules = Rules::compile([BETWEEN, all, "self == oldSelf"]).unwrap();
        for (rule, value, kept) in [
            (BETWEEN, json!("1h30m"), true),
            (BETWEEN, json!("59s"), false),
            (BETWEEN, json!("169h"), false),
            (BETWEEN, json!("no duration"), true),
            (BETWEEN, json!("99999999999h"), false),
            (all, json!([]), true),
            (all, json!(["a", "b c"]), false),
            ("self == oldSelf", json!("x"), true),
        ] {
            assert_eq!(rules.keeps(rule, &value), kept, "{rule}: {value}");
        }
    }

    #[test]
    fn a_rule_that_cannot_be_judged_is_no_rule_that_everything_keeps() {
        assert!(Rules::compile(["self.isSorted()"]).is_err());
        assert!(Rules::compile(["self.("]).is_err());
    }
}
