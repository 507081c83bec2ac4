//! Reading a JSON object strictly: each look at a field says what is wrong with it, in words for whoever sent it.

use serde_json::{Map, Value};

/// A result, or the complaint.
pub(super) type Checked<T = ()> = Result<T, String>;

/// A JSON object with the name it has in complaints.
pub(super) struct Object<'a> {
    name: String,
    fields: &'a Map<String, Value>,
}

type Limits = std::ops::RangeInclusive<usize>;

impl<'a> Object<'a> {
    pub fn of(value: &'a Value, name: impl Into<String>) -> Checked<Self> {
        let name = name.into();
        match value {
            Value::Object(fields) => Ok(Self { name, fields }),
            _ => Err(format!("{name} must be an object")),
        }
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.get(field)
    }

    fn required(&self, field: &str) -> Checked<&'a Value> {
        self.get(field)
            .ok_or_else(|| format!("{} needs {field}", self.name))
    }

    pub fn only(&self, allowed: &[&str]) -> Checked {
        match self
            .fields
            .keys()
            .find(|field| !allowed.contains(&field.as_str()))
        {
            Some(field) => Err(format!("{field} does not belong in {}", self.name)),
            None => Ok(()),
        }
    }

    pub fn object(&self, field: &str) -> Checked<Self> {
        Self::of(self.required(field)?, field)
    }

    pub fn optional(&self, field: &str) -> Checked<Option<Self>> {
        self.get(field).map(|value| Self::of(value, field)).transpose()
    }

    /// Text with so many characters.
    pub fn text(&self, field: &str, limits: Limits) -> Checked<&'a str> {
        let text = self
            .required(field)?
            .as_str()
            .ok_or_else(|| format!("{field} must be a string"))?;
        let (least, most) = (limits.start(), limits.end());
        if limits.contains(&text.chars().count()) {
            Ok(text)
        } else {
            Err(format!("{field} must have {least} to {most} characters"))
        }
    }

    pub fn optional_text(&self, field: &str, limits: Limits) -> Checked<Option<&'a str>> {
        self.get(field).map(|_| self.text(field, limits)).transpose()
    }

    pub fn optional_bool(&self, field: &str) -> Checked {
        match self.get(field) {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(_) => Err(format!("{field} must be true or false")),
        }
    }

    pub fn degrees(&self, field: &str, most: f64) -> Checked {
        match self.required(field)?.as_f64() {
            Some(degrees) if degrees.abs() <= most => Ok(()),
            _ => Err(format!("{field} must be a number from -{most} to {most}")),
        }
    }

    /// A list of so many objects.
    pub fn list(&self, field: &str, limits: Limits) -> Checked<Vec<Object<'a>>> {
        let list = self
            .required(field)?
            .as_array()
            .ok_or_else(|| format!("{field} must be a list"))?;
        if !limits.contains(&list.len()) {
            return Err(format!(
                "{field} must have {} to {} entries",
                limits.start(),
                limits.end()
            ));
        }
        list.iter()
            .map(|entry| Self::of(entry, format!("an entry of {field}")))
            .collect()
    }
}
