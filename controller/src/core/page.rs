//! Lists: which page, how many, in what order.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::error::{Problem, Result};

/// Rows of a page when the caller does not say.
pub const DEFAULT_PAGE_SIZE: u32 = 20;
/// Most rows of a page.
pub const MAX_PAGE_SIZE: u32 = 200;

/// Which page of a list.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct PageQuery {
    /// Page, from 1 (the default).
    pub page: Option<u32>,
    /// Rows of a page, 1 to 200; 20 when left out.
    pub page_size: Option<u32>,
    /// Column to sort by, with `-` before it for falling order.
    pub sort: Option<String>,
}

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Rows on all pages.
    pub total: i64,
    /// This page.
    pub page: u32,
    /// Most rows of a page.
    pub page_size: u32,
}

/// A checked [`PageQuery`].
#[derive(Clone, Debug)]
pub struct Paging {
    page: u32,
    page_size: u32,
    order: String,
}

impl PageQuery {
    /// Checks the query. `columns` are pairs of the public name and the SQL expression, the first
    /// of which is the default, and `tie` is a unique expression that makes the order total.
    ///
    /// # Errors
    ///
    /// `bad_page` (422) with what is allowed.
    pub fn check(
        &self,
        columns: &[(&'static str, &'static str)],
        default: &'static str,
        tie: &'static str,
    ) -> Result<Paging> {
        let page = self.page.unwrap_or(1);
        let page_size = self.page_size.unwrap_or(DEFAULT_PAGE_SIZE);
        if page == 0 || !(1..=MAX_PAGE_SIZE).contains(&page_size) {
            let detail = format!(
                "page is counted from 1 and page_size is 1 to {MAX_PAGE_SIZE}; page {page} of size {page_size} was asked for"
            );
            return Err(Problem::invalid("bad_page", detail));
        }
        let sort = self.sort.as_deref().unwrap_or(default);
        let (name, direction) = sort.strip_prefix('-').map_or((sort, "asc"), |name| (name, "desc"));
        let Some((_, expression)) = columns.iter().find(|(public, _)| *public == name) else {
            let names: Vec<_> = columns.iter().map(|(public, _)| *public).collect();
            let detail =
                format!("sort by one of {}; '-' before it turns the order", names.join(", "));
            return Err(Problem::invalid("bad_sort", detail));
        };
        let order = format!(" order by {expression} {direction}, {tie} {direction}");
        Ok(Paging { page, page_size, order })
    }
}

impl Paging {
    /// Returns ` order by … limit … offset …`; every part comes from code or is a checked number.
    #[must_use]
    pub fn sql(&self) -> String {
        let offset = u64::from(self.page - 1) * u64::from(self.page_size);
        format!("{} limit {} offset {offset}", self.order, self.page_size)
    }

    /// Returns ` order by …` alone, for a list that is narrowed further in memory.
    #[must_use]
    pub fn order(&self) -> &str {
        &self.order
    }

    /// Takes the page out of a short list that is in memory whole, in its own order.
    #[must_use]
    pub fn cut<T>(&self, all: Vec<T>) -> Page<T> {
        let total = i64::try_from(all.len()).unwrap_or(i64::MAX);
        let size = usize::try_from(self.page_size).unwrap_or(usize::MAX);
        let before = usize::try_from(self.page - 1).unwrap_or(usize::MAX).saturating_mul(size);
        self.page(all.into_iter().skip(before).take(size).collect(), total)
    }

    /// Makes the page from its rows and the number of all rows.
    #[must_use]
    pub fn page<T>(&self, items: Vec<T>, total: i64) -> Page<T> {
        Page { items, total, page: self.page, page_size: self.page_size }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[(&str, &str)] = &[("name", "i.name"), ("created_at", "i.created_at")];

    fn query(page: u32, page_size: u32, sort: &str) -> PageQuery {
        PageQuery { page: Some(page), page_size: Some(page_size), sort: Some(sort.to_owned()) }
    }

    #[test]
    fn a_page_is_a_limit_and_an_offset_in_a_total_order() {
        let paging = query(3, 50, "-created_at").check(COLUMNS, "name", "i.id").unwrap();

        assert_eq!(paging.sql(), " order by i.created_at desc, i.id desc limit 50 offset 100");
    }

    #[test]
    fn a_page_of_a_list_in_memory_is_cut_from_it_and_may_be_empty() {
        let cut = |page| {
            let page = query(page, 2, "name").check(COLUMNS, "name", "i.id").unwrap();
            page.cut(vec!["a", "b", "c"])
        };

        assert_eq!((cut(1).items, cut(2).items, cut(3).items), (vec!["a", "b"], vec!["c"], vec![]));
        assert_eq!((cut(3).total, cut(u32::MAX).items.len()), (3, 0));
    }

    #[test]
    fn sizes_and_columns_that_are_not_offered_are_refused() {
        for bad in [
            query(0, 20, "name"),
            query(1, 0, "name"),
            query(1, 201, "name"),
            query(1, 20, "id; drop"),
        ] {
            assert_eq!(bad.check(COLUMNS, "name", "i.id").unwrap_err().status, 422);
        }
    }
}
